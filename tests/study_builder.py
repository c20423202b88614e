"""Writes the folder of a study as finished runs leave it, with numbers that a test chooses."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SECONDS = {"rollout": 0.5, "reward": 0.25, "update": 0.75, "eval": 1.0}  # of a step: 1.5 of training
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
        line |= {"rollout/entropy": 1 / step, "kl/ref_k3_token": 0.002 * step}
        line |= {"completions/len_mean": 20.0 + step, "adv/std": 0.5}
        lines.append(line | ({"eval/dev/greedy/acc": 0.2 * step} if step % 2 == 0 else {}))
    return lines


def write_curves(run: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(dict(line)) + "\n" for line in lines))
    clock = [
        {"step": line["step"], "elapsed_s": 2.5 * line["step"], "seconds": SECONDS if line["step"] else {}}
        for line in lines
    ]
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


# ---------------------------------------------------------------- a study of realistic size

CLAIMS = [
    {"id": "grpo_better", "claim": "GRPO ends higher than PPO.", "rows": ["grpo_g8", "ppo"], "expect": "greater"},
    {"id": "beats_base", "claim": "GRPO beats its start.", "rows": ["grpo_g8", "warm-started"], "expect": "greater"},
    {
        "id": "half", "claim": "GRPO trains half the parameters.", "rows": ["grpo_g8", "ppo"], "measure": "parameters",
        "expect": "less", "scale": "ratio", "at_least": 0.45, "at_most": 0.55,
    },
    {
        "id": "area", "claim": "Larger groups learn more.", "rows": ["grpo_g4", "grpo_g8", "grpo_g16"],
        "measure": "learning_curve_area", "expect": "increasing", "source": "the article's claim",
    },
]  # fmt: skip


def write_study(
    folder: Path,
    arms: Mapping[str, float],
    seeds: Sequence[int],
    *,
    steps: int = 6,
    problems: int = 40,
    dev: int = 8,
    every: int = 2,
    samples: int = 1,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """``arms`` with the share of problems that each solves in the end, give or take its seed's luck; every record has
    the rows and keys of a real one: greedy and sampled test answers, dev evaluations, metrics and clocks by step."""
    base = [int(i % 5 < 2) for i in range(problems)]
    settings = config("ppo", "ppo", 0)["study"] | {"baseline": next(iter(arms)), "hypotheses": CLAIMS}
    settings["contrasts"] = [[name, next(iter(arms))] for name in list(arms)[1:]]
    for place, (name, share) in enumerate(arms.items()):
        for seed in seeds:
            rng = np.random.default_rng([place, seed])
            luck = 0.02 * rng.standard_normal()
            correct = (rng.random(problems) < share + luck).astype(int).tolist()
            size = int(name.rsplit("_g", 1)[1]) if "_g" in name else 1
            own = {"study": settings, "group_size": size, "lr": 1e-4, "epochs": 1, "minibatches": 1}
            run = write_run(
                folder, name, seed, correct, base=base, curve=learning_curve(rng, share, steps, every, size),
                changes=own | dict((changes or {}).get(name, {})),
            )  # fmt: skip
            lines = []
            for step in range(0, steps + 1, every):
                right = (rng.random(dev) < share * (0.5 + 0.5 * step / steps)).astype(int).tolist()
                lines += rows(right, split="dev", step=step)
            lines += rows(correct, step=steps)
            for k in range(samples):
                lines += [row | {"mode": "sampled", "sample": k} for row in rows(correct, step=steps)]
            answer = "7 + 5 = 12 ; 12 - 3 = 9 ; 9 + 8 = 17 ; 17 - 4 = 13 #### 13"
            write_gz(run, [row | {"response": answer} for row in lines])
            _tell_apart(folder, run, name, seed)


def _tell_apart(folder: Path, run: Path, name: str, seed: int) -> None:
    """A hash and a name of its own per row: the builder's hash is of the algorithm alone."""
    own = f"{abs(zlib.crc32(name.encode())):08x}"
    result = json.loads((run / "result.json").read_text())
    run_id = f"{name}-s{seed}-{own}"
    (run / "result.json").write_text(json.dumps(result | {"run_id": run_id, "config_hash": own}))
    run.rename(folder / run_id)


def learning_curve(rng: np.random.Generator, share: float, steps: int, every: int, size: int) -> list[dict[str, Any]]:
    """Metric lines as a run writes them, from before the first step; some thirty numbers each."""
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        height = 0.4 + (share - 0.4) * (1 - 2.0 ** (-6 * step / steps))
        line: dict[str, Any] = {"step": step, "samples": 128 * step, "generated_tokens": 2000 * step, "updates": step}
        if step:
            noise = rng.standard_normal(40)
            line |= {f"reward/{name}": float(height + 0.01 * x) for name, x in zip(_REWARDS, noise, strict=False)}
            line |= {f"completions/{name}": float(18 + x) for name, x in zip(_LENGTHS, noise, strict=False)}
            line |= {f"adv/{name}": float(x) for name, x in zip(_STATS, noise, strict=False)}
            line |= {f"policy/{name}": float(abs(x)) for name, x in zip(_POLICY, noise[9:], strict=False)}
            line |= {"group/frac_zero_std": 0.1 if size > 1 else 1.0, "adv/std": 0.97, "kl/ref_k3_token": 0.001 * step}
            line |= {"rollout/entropy": 0.5 / (1 + step), "completions/truncated_frac": 0.0, "policy/clip_frac": 0.01}
        if step % every == 0:
            line |= {"eval/dev/greedy/acc": float(height + 0.01 * rng.standard_normal())}
        lines.append(line)
    return lines


_REWARDS = ("mean", "std", "min", "max", "group_std_mean", "correct", "flexible", "format")
_LENGTHS = ("len_mean", "len_min", "len_max", "len_correct", "len_wrong", "eos_frac", "repetition")
_STATS = ("mean", "min", "max", "abs_mean")
_POLICY = ("loss", "ratio_mean", "ratio_max", "ratio_min", "approx_kl_k1", "approx_kl_k3", "kl_old", "grad_norm", "lr")
