"""Writes the folder of a study as finished runs leave it, with numbers that a test chooses."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

HASHES = {"ppo": "aaaaaaaa", "grpo": "bbbbbbbb"}
SIZES = {"policy": 600_000, "reference": 0}


def config(arm: str, algo: str, seed: int, **changes: Any) -> dict[str, Any]:
    """The keys of a run's config.yaml that tables read; ``changes`` replace top-level ones."""
    knobs = {"gamma": 1.0, "lam": 0.95, "whiten": False} if algo == "ppo" else {"ddof": 0, "eps": 1e-8}
    whole = {
        "study": {"name": "demo", "baseline": "ppo", "margin": 0.02, "contrasts": [], "hypotheses": []},
        "arm": arm,
        "seed": seed,
        "group_size": 1 if algo == "ppo" else 8,
        "budget": {"unit": "samples", "amount": 1024},
        "eval": {"every": 1, "n": 4, "test_n": None, "samples": 2, "temperature": 1.0, "ks": [1, 2]},
        "algo": {"name": algo, **knobs},
        "model": {"name": "tiny", "critic": "separate", "warmstart": {"steps": 400, "lr": 0.001}},
        "task": {
            "name": "arithmetic", "version": 1, "split": "train", "eval_split": "test", "answer": "gsm8k",
            "max_new_tokens": 64, "prompt": {"style": "plain", "template": "{question}"}, "stop": [],
        },
    }  # fmt: skip
    return whole | changes


def rows(correct: Sequence[int], *, split: str = "test", step: int = 4, flexible: Sequence[int] | None = None) -> list:
    """Greedy evaluation rows, one per entry of ``correct``."""
    loose = correct if flexible is None else flexible
    return [
        {
            "step": step, "split": split, "mode": "greedy", "id": f"arithmetic/{split}/{i}", "sample": 0,
            "response": "#### 1", "extracted": "1", "strict": bool(c), "flexible": bool(f), "correct": bool(c),
            "length": 10, "finished": True,
        }
        for i, (c, f) in enumerate(zip(correct, loose, strict=True))
    ]  # fmt: skip


def means(correct: Sequence[int]) -> dict[str, Any]:
    p = sum(correct) / len(correct)
    lengths = {"truncated": 0.0, "len_mean": 10.0, "len_correct": 9.0, "len_wrong": None}
    greedy = {"acc": p, "acc_strict": p, "acc_flexible": p, "n": len(correct), "stderr": 0.1, **lengths}
    return {"greedy": greedy, "sampled": {"acc": p / 2, "pass@1": p / 2, "pass@2": p, "maj@2": p / 2}}


def write_run(
    folder: Path,
    arm: str,
    seed: int,
    correct: Sequence[int],
    *,
    base: Sequence[int] | None = None,
    pretrained: Sequence[int] | None = None,
    algo: str | None = None,
    status: str = "complete",
    changes: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    curve: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """One complete run; ``changes`` go into its config, ``result`` into its result.json, ``curve`` are metric lines."""
    algo = algo or arm.split("_")[0]
    run_id = f"{arm}-s{seed}-{HASHES[algo]}"
    run = folder / run_id
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config(arm, algo, seed) | dict(changes or {})))
    critic = 600_000 if algo == "ppo" else 0
    seconds = {"rollout": 4.0, "reward": 0.5, "score": 1.5, "update": 6.0 if algo == "ppo" else 2.0, "eval": 3.0}
    seconds["total"] = sum(seconds.values())
    content = {
        "run_id": run_id, "study": "demo", "arm": arm, "row": arm, "algo": algo, "model": "tiny", "task": "arithmetic",
        "seed": seed, "status": status, "config_hash": HASHES[algo], "prompt_stream_hash": f"stream{seed}",
        "git_sha": "0123456789abcdef", "budget": {"unit": "samples", "amount": 1024},
        "eval": {"final": means(correct)},
        "cost": {
            "samples": 1024, "prompts": 1024 if algo == "ppo" else 128, "generated_tokens": 20_000,
            "trained_tokens": 20_000, "updates": 4, "steps": 4, "flops": 1.5e12, "seconds": seconds,
            "peak_memory_bytes": 5e8, "parameters": {**SIZES, "critic": critic},
        },
        "stability": {
            "kl_final": 0.01, "entropy_final": 0.3, "grad_norm_max": 2.5, "nan_steps": 0, "reward_std_last": 0.4,
            "diverged": status == "diverged",
        },
        "baselines": {},
    }  # fmt: skip
    for name, scores in (("base", base), ("pretrained", pretrained)):
        if scores is not None:
            content["eval"][name] = means(scores)
            content["baselines"][name] = f"{name}-cccccccc"
            write_gz(folder / "baselines" / f"{name}-cccccccc", rows(scores, step=0))
    write_gz(run, rows([1, 0], split="dev", step=2) + rows(correct))
    (run / "state.json").write_text(json.dumps({"status": status, "reason": None, "exit_code": 0, "step": 4}))
    (run / "result.json").write_text(json.dumps(content | dict(result or {})))
    provenance = {"argv": ["__main__.py"], "git": {"sha": "0123456789abcdef", "dirty": False}, "packages": {}}
    (run / "provenance.json").write_text(json.dumps({"attempts": [provenance]}))
    write_curves(run, curve if curve is not None else default_curve(seed))
    return run


def default_curve(seed: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, 5):
        line = {"step": step, "samples": 256 * step, "reward/mean": 0.1 * step + 0.01 * seed}
        line |= {"policy/entropy": 1 / step, "kl/ref_k3_token": 0.002 * step}
        line |= {"completions/len_mean": 20.0 + step, "adv/std": 0.5}
        lines.append(line | ({"eval/dev/greedy/acc": 0.2 * step} if step % 2 == 0 else {}))
    return lines


def write_curves(run: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(dict(line)) + "\n" for line in lines))
    clock = [{"step": line["step"], "elapsed_s": 1.5 * line["step"], "seconds": {}} for line in lines]
    (run / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in clock))


def write_gz(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "eval.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(dict(line)) + "\n" for line in lines)


def write_jobs(folder: Path, *jobs: tuple[str, int]) -> None:
    entries = [
        {"run_id": f"{arm}-s{seed}-{HASHES[arm.split('_')[0]]}", "arm": arm, "row": arm, "seed": seed,
         "overrides": [f"arm={arm}", f"seed={seed}"]}
        for arm, seed in jobs
    ]  # fmt: skip
    (folder / "jobs.json").write_text(json.dumps({"jobs": entries}))
