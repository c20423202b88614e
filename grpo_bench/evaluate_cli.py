"""``python -m grpo_bench.evaluate``: a model, or a run's checkpoint, on a task's test split, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from grpo_bench.process import prepare_process
from grpo_bench.types import UserError

if TYPE_CHECKING:
    import torch

    from grpo_bench.config import Config
    from grpo_bench.policy import Policy
    from grpo_bench.tasks import Task

HELP = """usage: python -m grpo_bench.evaluate [checkpoint=DIR] [KEY=VALUE ...]

Evaluate a model on a task's test split (or dev with split=dev) and nothing else.

  python -m grpo_bench.evaluate model=qwen2.5-0.5b task=gsm8k eval.test_n=200     a pretrained model
  python -m grpo_bench.evaluate checkpoint=results/STUDY-TASK/RUN                  a run, at its newest checkpoint
  python -m grpo_bench.evaluate model=hf model.path=results/.../export task=gsm8k  an exported policy

out=FOLDER      keep eval.jsonl and result.json there     split=test|dev
export=FOLDER   with checkpoint=: write the policy there as a Hugging Face folder
Keys are those of python -m grpo_bench: task, model, rollout, eval.*, device. With checkpoint= they are the run's own,
and only eval.*, task.path, task.math500_path, model.path, rollout.*, device and threads may be given.
"""
OWN = ("checkpoint", "out", "export", "split")
OF_A_RUN = (
    "eval",
    "task.path",
    "task.math500_path",
    "model.path",
    "rollout",
    "device",
    "threads",
    "micro_batch_tokens",
)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    prepare_process()
    try:
        own = {key: value for key, _, value in (w.partition("=") for w in words) if key in OWN}
        rest = [word for word in words if word.partition("=")[0] not in own]
        for key, value in own.items():
            if not value:
                raise UserError(f"{key}= has no value; give {'test or dev' if key == 'split' else 'a folder'}")
        split = own.get("split", "test")
        if split not in ("test", "dev"):
            raise UserError(f"split={split} is not known; choose test or dev")
        if "export" in own and "checkpoint" not in own:
            raise UserError("export= writes the policy of a run; give checkpoint=<folder of a run> as well")
        folders = {key: Path(own[key]) for key in ("checkpoint", "out", "export") if key in own}
        summary = _evaluate_alone(rest, "dev" if split == "dev" else "test", **folders)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    print(json.dumps(summary, indent=1))
    return 0


def _config_of(overrides: list[str], checkpoint: Path | None) -> Config:
    """The composed configuration, or a run's recorded one with what may be changed in it."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from grpo_bench.compose import compose, composing, override_key
    from grpo_bench.config import parse

    if checkpoint is None:
        with composing():
            return parse(compose(overrides))
    file = checkpoint / "config.yaml"
    if not file.is_file():
        raise UserError(f"checkpoint={checkpoint} holds no config.yaml; give the folder of a run")
    for word in overrides:
        key = override_key(word)
        if "=" not in word:
            raise UserError(f"{word!r} is not key=value")
        if not any(key == k or key.startswith(k + ".") for k in OF_A_RUN):
            raise UserError(
                f"{key} belongs to the run and cannot be changed with checkpoint=; give {', '.join(OF_A_RUN)}"
            )
    try:
        recorded = OmegaConf.load(file)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as e:
        raise UserError(f"{file} cannot be read ({_first_line(e)}); give the folder of an undamaged run") from None
    if not isinstance(recorded, DictConfig) or "algo" not in recorded:
        raise UserError(f"{file} is no configuration of a run; give the folder of an undamaged run")
    for word in overrides:
        try:
            recorded = OmegaConf.merge(recorded, OmegaConf.from_dotlist([word]))
        except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as e:
            raise UserError(f"{word!r} cannot be read ({_first_line(e)}); write key=value") from None
    return parse(OmegaConf.to_container(recorded))  # type: ignore[arg-type]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _writable(folder: Path, key: str) -> None:
    """UserError unless files can be made in ``folder``, which is created: asked before hours of work, not after."""
    probe = folder / f".{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"{key}={folder} cannot be written ({e.strerror}); give another folder") from None


def _evaluate_alone(
    overrides: list[str],
    split: Literal["test", "dev"],
    checkpoint: Path | None = None,
    out: Path | None = None,
    export: Path | None = None,
) -> dict[str, Any]:
    cfg = _config_of(overrides, checkpoint)
    for key, folder in (("out", out), ("export", export)):
        if folder is not None:
            _writable(folder, key)

    import torch

    from grpo_bench import checkpoint as checkpoints
    from grpo_bench.console import Console
    from grpo_bench.evaluate import evaluate, summarise
    from grpo_bench.files import disk_errors, write_atomic, write_json
    from grpo_bench.metrics import finite
    from grpo_bench.policy import Policy, check_lengths, choose_device, compute_dtype, load_model, load_tokenizer
    from grpo_bench.rollout import make_engine
    from grpo_bench.tasks import load_task

    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg)
    dtype = compute_dtype(cfg.model.dtype, device)
    saved = checkpoints.newest(checkpoint / "checkpoints") if checkpoint is not None else None
    task = load_task(cfg.task, cfg.seed)
    with contextlib.closing(Console()) as console, contextlib.closing(task):
        tokenizer = load_tokenizer(cfg.model)
        task.fit(tokenizer)
        model = load_model(cfg.model, device)
        check_lengths(model, cfg)
        policy = Policy(model, dtype)
        if checkpoint is not None and saved is not None:

            def warming(done: int, total: int) -> None:
                console.phase("warm start", done, total)

            policy = _restore(cfg, task, policy, tokenizer, checkpoint, saved.tensors("policy"), warming)
        if export is not None:
            with disk_errors(export):
                policy.export(export, tokenizer)
        problems = task.test(cfg.eval.test_n) if split == "test" else task.dev(cfg.eval.n)
        step = saved.step if saved is not None else 0
        rows = evaluate(
            cfg, task, policy, tokenizer, make_engine(cfg.rollout), problems, split, step, cfg.eval.samples,
            progress=lambda done, total: console.phase("evaluation", done, total),
        )  # fmt: skip
    summary: dict[str, Any] = finite(
        {
            "model": cfg.model.name,
            "task": cfg.task.name,
            "split": split,
            "step": step,
            **summarise(rows, cfg.eval.ks, cfg.task.answer),
        }
    )
    if out is not None:
        lines = "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)
        write_atomic(out / "eval.jsonl", lines.encode())
        write_json(out / "result.json", summary)
    return summary


def _restore(
    cfg: Config,
    task: Task,
    policy: Policy,
    tokenizer: Any,
    run: Path,
    weights: dict[str, torch.Tensor],
    progress: Callable[[int, int], None],
) -> Policy:
    """The policy of a checkpoint, made from the pretrained ``policy``.

    A checkpoint of adapters holds nothing of what they were trained on: the warm start is loaded from its cache, or
    made again where the same one can be made here, and UserError says so where it cannot.
    """
    from grpo_bench.policy import make_models
    from grpo_bench.state import load_weights
    from grpo_bench.warmstart import model_fingerprint, warm_start, warmstart_key

    if cfg.model.lora is not None:
        prints = _fingerprints(run)
        pretrained = model_fingerprint(policy.model)
        if prints.get("model", pretrained) != pretrained:
            raise UserError(
                "the run's adapters were trained on other weights; give the model's with model.path=<folder>"
            )
        key = warmstart_key(cfg, task, pretrained, policy.dtype)
        if key:
            warm_start(cfg, task, policy, tokenizer, key, progress)
            weights_now = model_fingerprint(policy.model)
            if prints.get("warmstart", weights_now) != weights_now:
                raise UserError(
                    "the run's adapters were trained on another warm start than the one made here; give the data, "
                    "device and cores that the run had, or set GRPO_BENCH_CACHE to the cache that it used"
                )
    policy = make_models(policy.model, cfg.model, policy.dtype, critic=False, reference=False).policy
    load_weights(policy, weights)
    return policy


def _fingerprints(run: Path) -> dict[str, str]:
    """Of the model's weights that a run began with, before and after its warm start; empty where no record says."""
    try:
        attempts = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["attempts"]
        return dict(attempts[-1]["fingerprints"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return {}
