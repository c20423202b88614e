"""Loading a model and making of it the policy, the reference and the critic that a run needs."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from grpo_bench.policy.critic import Critic
from grpo_bench.policy.memory import memory_errors
from grpo_bench.policy.network import Policy
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from grpo_bench.config import Config, LoraConfig, ModelConfig


HUB_SECONDS = 10.0  # for the hub to answer at all


def choose_device(cfg: Config) -> torch.device:
    """``device=auto`` is the first GPU if there is one."""
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here; use device=cpu or device=auto")
    name = cfg.device if cfg.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """``model.dtype=auto``: bfloat16 on a GPU, float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _source(cfg: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Where transformers loads from: a folder, a GGUF file in a folder, or a hub name."""
    if cfg.path is None:
        if cfg.id is None:
            raise UserError(
                f"model={cfg.name} names no weights; set model.id=<hub name> or model.path=<folder or .gguf file>"
            )
        return cfg.id, {"revision": cfg.revision} if cfg.revision else {}
    path = Path(cfg.path).expanduser()
    if not path.exists():
        raise UserError(f"model.path={cfg.path} does not exist; give a Hugging Face folder or a .gguf file")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model.path={cfg.path} holds no config.json; give a Hugging Face folder or a .gguf file")
        if not any(path.glob("*.safetensors")):
            pickled = next((f.name for kind in ("*.bin", "*.pt", "*.pth") for f in path.glob(kind)), None)
            found = f"only pickled weights ({pickled}), which are not loaded" if pickled else "no weights"
            raise UserError(
                f"model.path={cfg.path} holds {found}; give a folder with .safetensors files, or a .gguf file"
            )
        return str(path), {}
    if path.suffix != ".gguf":
        raise UserError(
            f"model.path={cfg.path} is a file but not a .gguf one; give a Hugging Face folder or a .gguf file"
        )
    return str(path.parent), {"gguf_file": path.name}


def reach_hub(id: str, revision: str | None, key: str, local: str) -> None:
    """One quick question to the hub before transformers asks it many times, each with minutes of retries.

    Nothing to do offline or when the model is in the cache already. ``key`` is the configuration's node that names the
    model, ``local`` what its ``path`` may be; both are for the one line of a UserError.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    if isinstance(huggingface_hub.try_to_load_from_cache(id, "config.json", revision=revision), str):
        return
    advice = f"give a local copy with {key}.path={local}"
    try:
        huggingface_hub.HfApi().model_info(id, revision=revision, timeout=HUB_SECONDS)
    except huggingface_hub.errors.RepositoryNotFoundError:
        raise UserError(f"the hub has no model {id!r} (or it is private); set {key}.id, or {advice}") from None
    except Exception as e:
        reason = " ".join(str(e).split())[:120]
        raise UserError(f"cannot reach the hub for model {id} ({type(e).__name__}: {reason}); {advice}") from None


def _from_pretrained(loader: Any, cfg: ModelConfig, **more: Any) -> Any:
    """Call ``loader.from_pretrained`` and turn what a user can cause into one line."""
    source, where = _source(cfg)
    if cfg.path is None and cfg.id is not None:
        reach_hub(cfg.id, cfg.revision, "model", "<folder or .gguf file>")
    if not sys.stderr.isatty():  # bars of a hundred lines each in a log
        transformers.utils.logging.disable_progress_bar()
    try:
        return loader.from_pretrained(source, trust_remote_code=cfg.trust_remote_code, **where, **more)
    except Exception as e:  # transformers raises OSError, ValueError, KeyError, RuntimeError, struct.error, ... here
        reason = " ".join(str(e).split())
        if "trust_remote_code" in reason:
            raise UserError(
                f"model {source} wants to run code of its own; read it, then allow it with model.trust_remote_code=true"
            ) from None
        if cfg.path is None:
            raise UserError(
                f"model {source} cannot be loaded from the hub ({reason[:200]}); check the name and the network, "
                "or give a local copy with model.path=<folder or .gguf file>"
            ) from None
        raise UserError(
            f"model.path={cfg.path} cannot be loaded ({type(e).__name__}: {reason[:200]}); "
            "weights must be safetensors or GGUF and whole"
        ) from None


def load_tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token that exists (the end token if it has none)."""
    if cfg.tiny is not None and cfg.path is None:
        from grpo_bench.tiny import tiny_tokenizer

        return tiny_tokenizer(cfg.tiny)
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, cfg)
    source, where = _source(cfg)
    if "gguf_file" in where:
        _mend_special_tokens(tokenizer, Path(source) / where["gguf_file"])
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of model={cfg.name} has no end token, so no answer could end; choose another model"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False  # it would change a response's text after the fact
    return tokenizer


def _mend_special_tokens(tokenizer: Any, file: Path) -> None:
    """First and end token as the GGUF file names them: transformers makes the first token the end token too."""
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(file))
    for name in ("bos", "eos"):
        if (token := metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(int(token)))


@memory_errors()
def load_model(cfg: ModelConfig, device: torch.device) -> PreTrainedModel:
    """The causal LM with fp32 weights, never from a pickle, without dropout.

    Raises UserError with one line when it cannot be had.
    """
    if cfg.tiny is not None and cfg.path is None:
        from grpo_bench.tiny import tiny_model

        return tiny_model(cfg.tiny).to(device).eval()  # type: ignore[arg-type]
    from transformers import AutoModelForCausalLM

    safe = {} if cfg.path is not None and str(cfg.path).endswith(".gguf") else {"use_safetensors": True}
    model = _from_pretrained(AutoModelForCausalLM, cfg, dtype=torch.float32, **safe)
    if getattr(model, "hf_quantizer", None) is not None and "gguf_file" in _source(cfg)[1]:
        model.hf_quantizer = None  # its weights were dequantised on loading; else it could not be saved
        del model.config.quantization_config
    for module in model.modules():  # dropout would make log-probs of the same tokens differ between passes
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # rates of functional dropout
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    if getattr(model.config, "attention_dropout", 0.0):
        model.config.attention_dropout = 0.0
    if cfg.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(device).eval()  # checkpointing is switched on around forwards with gradients, see Policy


def check_lengths(model: PreTrainedModel, cfg: Config) -> None:
    """UserError when the longest prompt with the longest answer has more tokens than the model has positions."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    task = cfg.task
    if positions is not None and task.max_prompt_tokens + task.max_new_tokens > positions:
        raise UserError(
            f"task.max_prompt_tokens={task.max_prompt_tokens} + task.max_new_tokens={task.max_new_tokens} are more "
            f"than the {positions} positions of model={cfg.model.name}; lower one of them"
        )


@dataclass(frozen=True, slots=True)
class Models:
    """What a run trains and scores with; what the algorithm does not need is None.

    ``reference_is_base``: the reference is the policy with its LoRA adapters switched off.
    """

    policy: Policy
    critic: Critic | None
    reference: Policy | None
    reference_is_base: bool

    @property
    def has_reference(self) -> bool:
        """A KL to the reference can be measured."""
        return self.reference is not None or self.reference_is_base

    def parameters(self) -> dict[str, int]:
        """Parameters of each network; a shared trunk counts once, with the policy."""
        count = {"policy": self.policy, "critic": self.critic, "reference": self.reference}
        return {name: sum(p.numel() for p in m.parameters()) if m is not None else 0 for name, m in count.items()}


@memory_errors()
def make_models(model: PreTrainedModel, cfg: ModelConfig, dtype: torch.dtype, critic: bool, reference: bool) -> Models:
    """Policy, critic and reference from the (warm-started) model, which becomes the policy."""
    value: Critic | None = None
    hidden = model.config.get_text_config().hidden_size
    if critic:
        trunk = None
        if cfg.critic == "separate":
            body = _without_head(copy.deepcopy(model))
            trunk = with_lora(body, cfg.lora, dtype) if cfg.lora is not None else Policy(body, dtype)
        value = Critic(hidden, trunk, model.device)
    policy = with_lora(model, cfg.lora, dtype) if cfg.lora is not None else Policy(model, dtype)
    frozen = make_reference(policy) if reference and cfg.lora is None else None
    return Models(policy, value, frozen, reference_is_base=reference and cfg.lora is not None)


def _without_head(model: PreTrainedModel) -> PreTrainedModel:
    """The value head replaces the language-model head: do not keep and train its weights, unless they are tied."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.set_output_embeddings(nn.Identity())
    return model


def make_reference(policy: Policy) -> Policy:
    """A frozen copy of the policy as it is now.

    Weights of linear layers are kept in the compute precision, everything else in fp32: under autocast this computes
    exactly what the policy's fp32 master weights compute, so that the KL before the first update is exactly 0.
    """
    model = copy.deepcopy(policy.model).requires_grad_(False)
    if policy.dtype != torch.float32:
        embeddings = model.get_input_embeddings().weight
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight is not embeddings:
                module.to(policy.dtype)
    return Policy(model, policy.dtype, like=policy)


def with_lora(model: PreTrainedModel, lora: LoraConfig, dtype: torch.dtype) -> Policy:
    """The model with trainable low-rank adapters; its own weights are frozen."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, its weight transposed

    targets: Any = lora.targets if lora.targets is not None else "all-linear"
    config = PeftConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the adapters' first weights are the same for every arm and seed
        try:
            peft_model = get_peft_model(model, config)
        except ValueError as e:
            raise UserError(
                f"model.lora.targets={lora.targets} do not fit this model: {str(e).splitlines()[0]}"
            ) from None
    peft_model.eval()
    adapted: Any = peft_model.base_model.model
    return Policy(adapted, dtype, peft_model=peft_model)
