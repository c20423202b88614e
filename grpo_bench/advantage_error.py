"""``python -m grpo_bench.advantage_error``: how far the advantages of small groups are from those of 64 completions.

From the policy before RL and no training. Writes ``results/<study>-<task>/advantage_error.json``:

- ``study task model seed policy fingerprints``: what was measured; ``policy`` is "warm-started" or "pretrained"
- ``problems reference_group completions``: P, N and their product; problems are the first of the training stream
- ``accuracy`` share of right completions, ``mixed`` share of problems with right and wrong ones among their N,
  ``correct`` right ones of each problem
- ``groups``: one entry per ``group_size`` G:
  ``groups`` how many there are; ``zero_signal`` share of them whose rewards are all equal, ``zero_signal_interval`` its
  95 % interval over problems; ``zero_signal_expected`` {``formula`` p^G + (1 − p)^G averaged over problems,
  ``unbiased`` the same without replacement, ``at_mean`` at the mean p};
  ``zscore`` and ``center``: {``rmse``, ``rmse_interval``, ``correlation``, ``correlation_interval``} of GRPO's
  advantage, and of r − μ, in groups of G against those among all N
"""

from __future__ import annotations

import contextlib
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_bench.process import prepare_process
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config

FILE = "advantage_error.json"
REFERENCE = 64
GROUP_SIZES = (2, 4, 8, 16, 32)
BLOCK = 16  # problems sampled at once

HELP = """usage: python -m grpo_bench.advantage_error [--config-dir DIR --config-name STUDY] [problems=N] [KEY=VALUE ..]

Measure, on the policy before RL, how far advantages from groups of 2 to 32 completions are from those of 64, and how
many such groups carry no signal.

  python -m grpo_bench.advantage_error --config-dir sweeps --config-name group_size
  python -m grpo_bench.advantage_error --config-dir sweeps --config-name group_size task=gsm8k model=qwen2.5-0.5b

problems=N      how many problems of the training stream (256)
Keys are those of python -m grpo_bench: task, model, reward, rollout, seed, device, threads, results, study.name.
"""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    prepare_process()
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn", default="config")
    known, rest = parser.parse_known_args(words)
    try:
        problems = _count([word for word in rest if word.startswith("problems=")])
        overrides = [word for word in rest if not word.startswith("problems=")]
        path = measure(_config(overrides, known.config_name, known.config_dir), problems)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    print(path)
    return 0


def _count(words: list[str]) -> int:
    value = words[-1].partition("=")[2] if words else "256"
    if not value.isdecimal() or int(value) < 2:
        raise UserError(f"problems={value} should be a number of at least 2")
    return int(value)


def _config(overrides: list[str], name: str, config_dir: str | None) -> Config:
    from grpo_bench.compose import compose, composing
    from grpo_bench.config import parse
    from grpo_bench.paths import sweeps_dir

    ours = sweeps_dir()
    if config_dir == "sweeps" and ours is not None and not Path("sweeps").is_dir():
        config_dir = str(ours)  # an installed package has its own
    with composing(config_dir):
        return parse(compose(overrides, name))


def measure(cfg: Config, problems: int) -> Path:
    """Sample ``problems`` groups of 64, compare, and write the file; its path."""
    import torch

    from grpo_bench import rewards
    from grpo_bench.collect import collect
    from grpo_bench.console import Console
    from grpo_bench.cost import Meter
    from grpo_bench.files import disk_errors, write_json
    from grpo_bench.group_estimates import summary
    from grpo_bench.identity import study_dir
    from grpo_bench.policy import Policy, check_lengths, choose_device, compute_dtype, load_model, load_tokenizer
    from grpo_bench.rollout import make_engine
    from grpo_bench.tasks import load_task
    from grpo_bench.warmstart import model_fingerprint, warm_start, warmstart_key

    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg)
    cfg = cfg.model_copy(update={"group_size": REFERENCE})
    task = load_task(cfg.task, cfg.seed)
    with contextlib.closing(Console()) as console, contextlib.closing(task):
        tokenizer = load_tokenizer(cfg.model)
        task.fit(tokenizer)
        model = load_model(cfg.model, device)
        check_lengths(model, cfg)
        rewards.load(cfg)
        policy = Policy(model, compute_dtype(cfg.model.dtype, device))
        prints = {"data": task.fingerprint, "model": model_fingerprint(model)}
        key = warmstart_key(cfg, task, prints["model"], policy.dtype)
        if key:
            warm_start(cfg, task, policy, tokenizer, key, lambda done, total: console.phase("warm start", done, total))
            prints["warmstart"] = model_fingerprint(policy.model)
        engine, meter = make_engine(cfg.rollout), Meter(device)
        drawn = [task.train_problem(i) for i in range(problems)]
        total, right = [], []
        for start in range(0, problems, BLOCK):  # the number of a block keys its random numbers
            some = drawn[start : start + BLOCK]
            batch = collect(cfg, task, policy, tokenizer, engine, some, start // BLOCK, meter).batch
            total.append(batch.rewards.double().cpu().view(len(some), REFERENCE))
            right.append(batch.correct.cpu().view(len(some), REFERENCE))
            console.phase("sampling", min(start + BLOCK, problems), problems)
    rewards_PN, correct_PN = torch.cat(total), torch.cat(right)
    content: dict[str, Any] = {
        "study": cfg.study.name,
        "task": cfg.task.name,
        "model": cfg.model.name,
        "seed": cfg.seed,
        "policy": "warm-started" if key else "pretrained",
        "fingerprints": prints,
        "problems": problems,
        "reference_group": REFERENCE,
        "completions": problems * REFERENCE,
        "accuracy": float(correct_PN.double().mean()),
        "mixed": float((correct_PN.any(1) & ~correct_PN.all(1)).double().mean()),
        "correct": correct_PN.sum(1).tolist(),
        "groups": summary(rewards_PN, correct_PN, GROUP_SIZES),
    }
    folder = study_dir(cfg)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, content)
    return folder / FILE


if __name__ == "__main__":
    sys.exit(main())
