"""``python -m grpo_bench.reward_training``: sample answers, label them, train a classifier, measure it, write it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_bench.process import prepare_process
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config
    from grpo_bench.rewards import Scored
    from grpo_bench.rewards.model import RewardModel

HELP = """usage: python -m grpo_bench.reward_training [out=FOLDER] [KEY=VALUE ...]

Train a reward model: a classifier that starts from the policy's weights (after its warm start) and learns to tell the
policy's right answers from its wrong ones, as the task's own verifier labels them. A fifth of the problems is held out
and measured on. Only training problems are asked, neither dev nor test.

  python -m grpo_bench.reward_training threads=1                the embedded task and model
  python -m grpo_bench reward=classifier threads=1              a run that is rewarded by it
  python -m grpo_bench.reward_training task=gsm8k model=qwen2.5-0.5b lr=1e-5 batch=32 out=FOLDER
  python -m grpo_bench reward=classifier task=gsm8k model=qwen2.5-0.5b reward.model.path=FOLDER

out=FOLDER      a Hugging Face folder, with what was measured in its reward_model.json; must be empty or absent
                (default: where reward=classifier looks, results/reward_model-TASK/classifier)
problems={problems}    training problems asked       samples={samples}       answers of each
epochs={epochs}        passes over the answers       batch={batch}        answers per update
lr={lr:g}        of the classifier
Other keys are those of python -m grpo_bench: task, model, rollout, reward.model, seed, device, threads.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """The command's own words; ``lr`` and ``epochs`` are the classifier's here."""

    problems: int = 500
    samples: int = 8
    epochs: int = 4
    batch: int = 64
    lr: float = 1e-3


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line, sorted."""

    settings: Settings = Settings()
    out: Path | None = None
    overrides: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(HELP.format(**asdict(Settings())), end="")
        return 0
    prepare_process()
    try:
        given = arguments(words)
        cfg = config_of(given)
        report = train(cfg, given.settings, given.out or Path(str(cfg.reward.model.path)), words)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    print(json.dumps(report["held_out"], indent=1))
    return 0


def arguments(words: list[str]) -> Arguments:
    """The command's own words apart from the configuration's; UserError for a value that cannot be meant."""
    kinds: dict[str, type] = {"problems": int, "samples": int, "epochs": int, "batch": int, "lr": float}
    own: dict[str, Any] = {}
    out, rest = None, []
    for word in words:
        key, _, value = word.partition("=")
        if key == "out":
            if not value:
                raise UserError("out= has no value; give a folder")
            out = Path(value).expanduser()
        elif key in kinds:
            try:
                own[key] = kinds[key](value)
            except ValueError:
                raise UserError(f"{word} is no {'whole ' * (kinds[key] is int)}number") from None
        elif key == "reward":
            raise UserError(f"{word} does not fit: this trains what reward=classifier reads; drop it")
        else:
            rest.append(word)
    settings = Settings(**own)
    smallest = {"problems": 2, "samples": 1, "epochs": 1, "batch": 1}
    for key, least in smallest.items():
        if getattr(settings, key) < least:
            raise UserError(f"{key}={getattr(settings, key)}: give at least {least}")
    if not 0 < settings.lr < 1:
        raise UserError(f"lr={settings.lr:g}: give a learning rate above 0 and below 1")
    return Arguments(settings, out, rest)


def config_of(given: Arguments) -> Config:
    """The configuration of a run that the reward model is for."""
    from grpo_bench.compose import compose, composing
    from grpo_bench.config import parse

    with composing():
        return parse(compose(["reward=classifier", *given.overrides]))


def train(cfg: Config, settings: Settings, out: Path, words: list[str]) -> dict[str, Any]:
    """Everything from problems to the written folder; returns the content of its ``reward_model.json``."""
    _free(out)
    import torch

    from grpo_bench.console import Console
    from grpo_bench.policy import Policy, check_lengths, choose_device, compute_dtype, load_model, load_tokenizer
    from grpo_bench.policy.score import micro_batch_tokens
    from grpo_bench.reward_training import answers, fit
    from grpo_bench.rewards.model import RewardModel
    from grpo_bench.rollout import make_engine
    from grpo_bench.tasks import load_task
    from grpo_bench.warmstart import model_fingerprint, warm_start, warmstart_key

    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg)
    dtype = compute_dtype(cfg.model.dtype, device)
    clock = [time.perf_counter()]
    task = load_task(cfg.task, cfg.seed)
    with contextlib.closing(Console()) as console, contextlib.closing(task):
        tokenizer = load_tokenizer(cfg.model)
        if cfg.reward.model.chat and not tokenizer.chat_template:
            raise UserError(f"reward.model.chat=true, but model={cfg.model.name} has no chat template; drop it")
        task.fit(tokenizer)
        problems = answers.draw(task, settings.problems, cfg.seed)
        model = load_model(cfg.model, device)
        check_lengths(model, cfg)
        policy = Policy(model, dtype)
        prints = {"data": task.fingerprint, "model": model_fingerprint(model)}
        if key := warmstart_key(cfg, task, prints["model"], dtype):
            warm_start(cfg, task, policy, tokenizer, key, lambda done, total: console.phase("warm start", done, total))
        prints["policy"] = model_fingerprint(model)

        clock.append(time.perf_counter())
        engine, total = make_engine(cfg.rollout), settings.problems * settings.samples
        rows: list[Scored] = []
        for draw, chosen in enumerate(problems):

            def told(done: int, earlier: int = sum(len(r.responses) for r in rows)) -> None:
                console.phase("sampling", earlier + done, total)

            rows.append(
                answers.sample(cfg, task, policy, tokenizer, engine, chosen, settings.samples, draw, progress=told)
            )
        learnt, held_out = rows
        answers.check(learnt)

        clock.append(time.perf_counter())
        knobs = cfg.reward.model.model_copy(update={"output": "logit"})
        classifier = fit.classifier_of(model, tokenizer, cfg.seed)
        scorer = RewardModel(classifier, tokenizer, knobs, cfg.task.max_prompt_tokens + cfg.task.max_new_tokens)
        fit.fit(
            cfg, scorer, learnt, epochs=settings.epochs, batch=settings.batch, lr=settings.lr,
            tokens=micro_batch_tokens(policy, cfg.micro_batch_tokens), dtype=dtype,
            progress=lambda done, total: console.phase("training", done, total),
        )  # fmt: skip
        clock.append(time.perf_counter())
        measured = {"train": fit.measure(scorer, learnt), "held_out": fit.measure(scorer, held_out)}
        prints["reward_model"] = model_fingerprint(classifier)
        names = ("preparing", "sampling", "training")
        report = {
            **_origin(cfg, settings, words),
            "fingerprints": prints,
            "parameters": int(scorer.constants["parameters"]),
            "problems": {"train": len(problems[0]), "held_out": len(problems[1])},
            **measured,
            "seconds": {name: b - a for name, (a, b) in zip(names, pairwise(clock), strict=True)},
        }
        _write(out, scorer, report)
        auc = measured["held_out"]["auc"]
        console.note(f"reward model in {out}" + (f": AUC {auc:.3f} on held-out problems" if auc is not None else ""))
    return report


def _origin(cfg: Config, settings: Settings, words: list[str]) -> dict[str, Any]:
    """What was asked, of what, by which program."""
    from grpo_bench.provenance import base_names, git_sha, package_version

    return {
        "command": shlex.join(["python", "-m", "grpo_bench.reward_training", *base_names(words)]),
        "task": cfg.task.name,
        "model": cfg.model.name,
        "seed": cfg.seed,
        "settings": asdict(settings),
        "sampling": {"temperature": cfg.rollout.temperature, "max_new_tokens": cfg.task.max_new_tokens},
        "version": package_version(),
        "git_sha": git_sha(),
    }


def _free(folder: Path) -> None:
    """UserError unless ``folder`` can be written and nothing lies there: asked before the work, not after it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out={folder} exists and is not empty; give another folder, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as e:
        raise UserError(f"out={folder} cannot be written ({e.strerror}); give another folder") from None


def _write(folder: Path, scorer: RewardModel, report: dict[str, Any]) -> None:
    """The folder appears whole or not at all."""
    import shutil

    import transformers

    from grpo_bench.files import disk_errors, write_json
    from grpo_bench.metrics import finite

    if not sys.stderr.isatty():  # bars in a log
        transformers.utils.logging.disable_progress_bar()
    with disk_errors(folder):
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            scorer.model.save_pretrained(work)
            scorer.tokenizer.save_pretrained(work)
            write_json(work / "reward_model.json", finite(report))
            work.chmod(0o755)
            os.replace(work, folder)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
