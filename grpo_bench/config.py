"""The schema: every field typed and ranged, unknown keys refused; and ``parse``, the only way to a ``Config``.

YAML in ``conf/`` holds the values, this file the types and ranges; a field has a default here only if it was added
after version 1 of the schema, and that default must mean "as before" (see ``config_hash``).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, SerializationInfo, ValidationError, field_serializer, field_validator

from grpo_bench import config_checks, config_errors
from grpo_bench.config_errors import ConfigError
from grpo_bench.config_reward import RewardConfig
from grpo_bench.config_strict import Strict
from grpo_bench.config_study import HypothesisConfig, StudyConfig
from grpo_bench.device import resolve_device, resolve_dtype
from grpo_bench.identity import config_hash, run_dir, run_id
from grpo_bench.tuned import RATES, multiple, tuned_rate
from grpo_bench.types import UserError

__all__ = [
    "CONFIG_VERSION", "Config", "HypothesisConfig", "StudyConfig",
    "config_hash", "parse", "run_dir", "run_id", "warnings",
]  # fmt: skip

CONFIG_VERSION = 1


Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean


class BudgetConfig(Strict):
    """A run stops after the first step that reaches ``amount`` of ``unit``."""

    unit: Literal["samples", "tokens", "updates", "seconds", "flops"]
    amount: float = Field(gt=0)


class OptimConfig(Strict):
    """AdamW for policy and critic; ``warmup_updates`` rise linearly, then the schedule runs over the budget."""

    betas: tuple[Decay, Decay]
    eps: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    grad_clip: float | None = Field(gt=0)  # largest norm, per network
    schedule: Literal["constant", "linear", "cosine"]
    warmup_updates: int = Field(ge=0)


class EvalConfig(Strict):
    """Every ``every`` steps on ``n`` dev problems (0: never while training), at the end on ``test_n`` test problems."""

    every: int = Field(ge=0)
    n: int = Field(ge=1)  # dev problems, a slice of train that is never trained on
    test_n: int | None = Field(ge=1)  # null: all of the test split (arithmetic: 1,000)
    samples: int = Field(ge=0)  # sampled completions per problem beside the greedy one; 0: greedy only
    dev_samples: int | None = Field(default=None, ge=0)  # the same on dev while training; null: as many
    temperature: float = Field(gt=0)  # of the sampled ones
    ks: list[int]  # of pass@k and maj@k, none above samples
    pretrained: bool  # evaluate the model before the warm start too (once per study)


class CheckpointConfig(Strict):
    every: int = Field(ge=0)  # steps; 0: none
    keep: int = Field(ge=2)  # the one before a damaged one must exist


class PromptConfig(Strict):
    """How a question becomes the model's input."""

    style: Literal["plain", "chat"]  # chat: the tokenizer's chat template
    system: str | None  # chat only
    template: str  # contains {question}
    shots: list[dict[str, str]]  # few-shot examples {question, answer}, before the question
    shot_template: str  # contains {question} and {answer}


class FilterConfig(Strict):
    """Filters as data; null: all."""

    steps: list[int] | None  # gsm8k: numbers of solution steps
    level: list[int] | None  # math: 1..5
    subject: list[str] | None  # math: "Algebra", ...
    limit: int | None = Field(ge=1)  # at most so many training problems, after the other filters


class ArithmeticConfig(Strict):
    """The embedded task: chains of + and - on small numbers as short word problems."""

    steps: tuple[int, int]  # fewest and most operations of a chain
    operands: tuple[int, int]  # smallest and largest number
    results: tuple[int, int]  # every intermediate result lies within


class TaskConfig(Strict):
    name: Literal["arithmetic", "gsm8k", "math", "custom"]
    version: int = Field(ge=1)
    path: str | None  # local folder of jsonl or parquet files (custom: may be one file); null: the hub
    hub: str | None  # data set id on the hub
    hub_config: str | None
    split: str  # math: 12k, 7.5k; custom: any; others: train
    eval_split: str  # math: math500, test; custom: any other; others: test
    math500_path: str | None  # math: folder of MATH-500; null: "math500" beside path
    math500_hub: str | None
    prompt: PromptConfig
    stop: list[str]
    answer: Literal["gsm8k", "math"]  # extraction and equality rule, tasks/grading.py
    filters: FilterConfig
    arithmetic: ArithmeticConfig | None
    demonstrations: dict[str, float]  # shares of worked, bare and unmarked answers in the warm start
    max_prompt_tokens: int = Field(ge=1)  # longer prompts are dropped from train, counted and named
    max_new_tokens: int = Field(ge=1)
    verify_seconds: float = Field(gt=0)  # limit of one comparison (math)
    verify_workers: int = Field(ge=0)


class LoraConfig(Strict):
    r: int = Field(ge=1)
    alpha: int = Field(ge=1)
    targets: list[str] | None  # module names; null: all linear layers


class TinyConfig(Strict):
    """The embedded Llama, built from config."""

    hidden_size: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=8)
    vocab_size: int = Field(ge=300)
    max_positions: int = Field(ge=64)
    init_std: float = Field(gt=0)
    init_seed: int = Field(ge=0)


class WarmstartConfig(Strict):
    """Supervised training on worked solutions before RL; ``steps: 0``: none."""

    steps: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0)


class ModelConfig(Strict):
    name: str
    id: str | None  # hub name; null with tiny
    path: str | None  # local folder or GGUF file; wins over id
    revision: str | None
    dtype: Literal["auto", "float32", "bfloat16"]  # of compute; master weights are float32 always
    critic: Literal["separate", "shared"]  # its own network, or a value head on the policy's trunk
    lora: LoraConfig | None
    trust_remote_code: bool
    gradient_checkpointing: bool
    tiny: TinyConfig | None
    warmstart: WarmstartConfig


class RolloutConfig(Strict):
    engine: Literal["native", "hf"]
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    top_k: int | None = Field(ge=1)
    batch_size: int | None = Field(ge=1)  # completions decoded at once; null: sized to memory
    dtype: Literal["float32", "bfloat16"] | None = None  # what native samples in; null: what the model computes in
    cuda_graph: bool = True  # native on a GPU: decode steps are captured and replayed


class TrackerConfig(Strict):
    """A mirror of the record; it may fail without harm."""

    name: Literal["none", "wandb", "tensorboard"]
    project: str
    entity: str | None
    mode: Literal["auto", "online", "offline"]  # wandb; auto: online with an account, else offline
    tags: list[str]
    completions: int = Field(ge=0)  # rows of the completions table per logged step
    completions_every: int = Field(ge=1)  # steps


class Config(Strict):
    """A whole run, resolved: what is recorded, logged and hashed."""

    config_version: Literal[1]
    study: StudyConfig
    arm: str | None  # names the settings of a row of a table; null: named after the algorithm
    row: str | None  # the arm and the overrides that vary in its sweep; null: the arm
    experiment: str | None
    seed: int = Field(ge=0)
    device: Literal["auto", "cpu", "cuda"]
    threads: int | None = Field(ge=1)  # CPU threads of torch; null: torch's choice
    group_size: int = Field(ge=1)
    samples_per_step: int | None = Field(ge=1)  # exactly one of the two;
    prompts_per_step: int | None = Field(ge=1)  # the other one is null
    budget: BudgetConfig
    epochs: int = Field(ge=1)
    minibatches: int = Field(ge=1)
    micro_batch_tokens: int | None = Field(ge=1)  # padded tokens per forward of the update; null: by device
    lr: float | None = Field(ge=0, lt=1)
    critic_lr: float | None = Field(ge=0, lt=1)
    kl_coef: float = Field(ge=0)
    target_kl: float | None = Field(gt=0)
    dialect: str
    mask_truncated: bool  # take truncated answers out of the loss
    measure_kl: bool = False  # keep the reference also where nothing is penalised by it
    grad_noise_every: int = Field(default=0, ge=0)  # steps between measurements of the gradient's variance; 0: never
    optim: OptimConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    export: bool  # write the trained policy as a Hugging Face folder
    resume: bool
    isolate: bool  # run each job of a sweep in its own process
    parallel: int | Literal["auto"]  # jobs of a sweep at once on this machine; auto: by its cores
    jobs_per_gpu: int = Field(1, ge=1)  # of them on one GPU at once
    results: str  # folder that records go to
    algo: Any  # an Algorithm, see grpo_bench/algos
    task: TaskConfig
    reward: RewardConfig
    model: ModelConfig
    rollout: RolloutConfig
    tracker: TrackerConfig

    @field_validator("parallel", mode="before")
    @classmethod
    def _jobs_at_once(cls, value: Any) -> Any:
        if value == "auto" or (str(value).isdecimal() and int(value) >= 1):
            return value
        raise ValueError("should be a number of at least 1, or auto")

    @field_validator(*RATES, mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        """``parse`` has taken a multiple of the tuned rate out, so what is no number here was meant as one or other."""
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError("should be a number, or a multiple of the tuned rate such as 0.1x") from None

    @field_serializer("algo")
    def _algo_node(self, algo: Any, info: SerializationInfo) -> dict[str, Any]:
        """As its YAML has it: ``class`` is an alias, since it is a reserved word."""
        mode = "json" if info.mode_is_json() else "python"
        return algo.model_dump(mode=mode, by_alias=True, exclude_defaults=info.exclude_defaults)

    @property
    def prompts(self) -> int:
        """Problems per step, P."""
        if self.prompts_per_step is not None:
            return self.prompts_per_step
        assert self.samples_per_step is not None
        return self.samples_per_step // self.group_size

    @property
    def samples(self) -> int:
        """Completions per step, B."""
        return self.prompts * self.group_size

    @property
    def name(self) -> str:
        """What a run is called: its arm, else its algorithm."""
        return self.arm or str(self.algo.name)


def plain(cfg: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """A composed configuration as plain data, interpolations resolved, without Hydra's own node."""
    if not isinstance(cfg, DictConfig):
        return {key: value for key, value in cfg.items() if key != "hydra"}
    try:
        ours = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        data = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as e:
        raise ConfigError([str(e).splitlines()[0]]) from None
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def parse(cfg: DictConfig | dict[str, Any]) -> Config:
    """A composed (or recorded) configuration, validated and resolved: row, device, dtype and learning rates filled in.

    Idempotent: ``parse(parse(c).model_dump(mode="json")) == parse(c)``. Raises ``ConfigError`` with one line per
    problem: unknown and misplaced keys, types, ranges, contradictions.
    """
    from grpo_bench import algos  # here, so that reading the schema does not cost the algorithms

    data = plain(cfg)
    node = data.get("algo")
    if not isinstance(node, dict):
        raise ConfigError([f"algo={node!r}: should be one of conf/algo, such as algo=grpo"])
    problems: list[str] = []
    algo: Any = None
    try:
        algo = algos.load(node, str(data.get("dialect", "paper")))
    except ValidationError as e:
        problems += config_errors.describe(e, node, prefix=("algo",))
    except UserError as e:
        problems.append(str(e))
    config: Config | None = None
    multiples = {key: times for key in RATES if (times := multiple(data.get(key))) is not None}
    try:
        config = Config.model_validate({**data, **dict.fromkeys(multiples), "algo": algo})
    except ValidationError as e:
        problems += config_errors.describe(e, node)
    if config is not None and algo is not None:
        problems += config_checks.contradictions(config)
    if problems or config is None:
        raise ConfigError(problems)
    config = _resolve(config, multiples)
    config.algo.check(config)
    return config


def _resolve(cfg: Config, multiples: dict[str, Decimal]) -> Config:
    """Fill in what null, auto and multiples of a tuned rate stand for, so that the record says what ran."""
    device = resolve_device(cfg.device)
    update: dict[str, Any] = {
        "row": cfg.row or cfg.name,
        "device": device,
        "model": cfg.model.model_copy(update={"dtype": resolve_dtype(cfg.model.dtype, device)}),
    }
    for key in RATES:
        needed = getattr(cfg, key) is None and (key == "lr" or cfg.algo.needs_critic)
        if needed or key in multiples:
            update[key] = tuned_rate(key, cfg, multiples.get(key, Decimal(1)))
    return cfg.model_copy(update=update)


def warnings(cfg: Config) -> list[str]:
    """Settings that are inert or that bias a comparison, one line each."""
    return [*cfg.algo.check(cfg), *config_checks.warnings(cfg)]
