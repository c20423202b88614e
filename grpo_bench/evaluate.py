"""A split -> one row per (problem, sample), and their summary. ``python -m grpo_bench.evaluate`` does only this."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from grpo_bench.ops import pass_at_k
from grpo_bench.rollout import Engine, Noise, Sampling
from grpo_bench.tasks import Task
from grpo_bench.tasks.grading import vote_key
from grpo_bench.types import Problem, UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config
    from grpo_bench.policy import Policy

Row = dict[str, Any]
EVAL_SEED = 0  # evaluations draw the same numbers for every arm and seed: what differs is the model


def evaluate(
    cfg: Config,
    task: Task,
    policy: Policy,
    tokenizer: Any,
    engine: Engine,
    problems: Sequence[Problem],
    split: Literal["dev", "test"],
    step: int,
    samples: int,
) -> list[Row]:
    """Greedy answers, and ``samples`` sampled ones per problem, graded: rows as in ``eval.jsonl``."""
    prompts = task.prompt_ids(problems, tokenizer)
    rows: list[Row] = []
    for mode, count, temperature in (("greedy", 1, 0.0), ("sampled", samples, cfg.eval.temperature)):
        if count == 0:
            continue
        sampling = Sampling(temperature, cfg.task.max_new_tokens, stop=tuple(cfg.task.stop))
        out = engine.generate(policy, tokenizer, prompts, count, sampling, Noise(EVAL_SEED, split))
        members = [problem for problem in problems for _ in range(count)]
        grades = task.grade(members, out.texts)
        for i, (problem, grade) in enumerate(zip(members, grades, strict=True)):
            rows.append(
                {
                    "step": step,
                    "split": split,
                    "mode": mode,
                    "id": problem.id,
                    "sample": i % count,
                    "response": out.texts[i],
                    "extracted": grade.extracted,
                    "strict": grade.strict,
                    "flexible": grade.flexible,
                    "correct": grade.strict and out.finished[i],
                    "length": len(out.completion_ids[i]),
                    "finished": out.finished[i],
                }
            )
    return rows


def summarise(
    rows: Sequence[Row], ks: Sequence[int], rule: Literal["gsm8k", "math"]
) -> dict[str, dict[str, float | None]]:
    """Rows of one split and step -> {greedy, sampled} -> metrics.

    ``acc`` is the share of correct rows (strict match and finished); ``stderr`` is over problems (clustered: samples
    of a problem are not independent); pass@k is unbiased; maj@k is the vote of the first k samples, ties to the
    earliest answer, unparsable ones do not vote.
    """
    out: dict[str, dict[str, float | None]] = {}
    for mode in ("greedy", "sampled"):
        mine = [row for row in rows if row["mode"] == mode]
        if not mine:
            continue
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in mine:
            groups[row["id"]].append(row)
        means = [sum(r["correct"] for r in group) / len(group) for group in groups.values()]
        acc = sum(means) / len(means)
        spread = sum((m - acc) ** 2 for m in means) / max(len(means) - 1, 1)
        summary: dict[str, float | None] = {
            "acc": acc,
            "acc_strict": _mean([r["strict"] for r in mine]),
            "acc_flexible": _mean([r["flexible"] for r in mine]),
            "stderr": math.sqrt(spread / len(means)),
            "n": len(groups),
            "truncated": _mean([not r["finished"] for r in mine]),
            "len_mean": _mean([r["length"] for r in mine]),
            "len_correct": _mean([r["length"] for r in mine if r["correct"]]),
            "len_wrong": _mean([r["length"] for r in mine if not r["correct"]]),
        }
        count = min(len(group) for group in groups.values())
        if mode == "sampled":
            for k in ks:
                if k <= count:
                    chances = [pass_at_k(len(g), sum(r["correct"] for r in g), k) for g in groups.values()]
                    summary[f"pass@{k}"] = _mean(chances)
                    summary[f"maj@{k}"] = _mean([_majority(g[:k], rule) for g in groups.values()])
        out[mode] = summary
    return out


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _majority(group: Sequence[Row], rule: Literal["gsm8k", "math"]) -> bool:
    votes = [(vote_key(rule, r["extracted"]), r["correct"]) for r in group if r["extracted"] is not None]
    if not votes:
        return False
    winner = Counter(key for key, _ in votes).most_common(1)[0][0]  # ties: the first counted
    return any(right for key, right in votes if key == winner)


def flat(split: str, summary: dict[str, dict[str, float | None]]) -> dict[str, float | None]:
    """A summary under the glossary's names: ``eval/dev/greedy/acc``."""
    return {f"eval/{split}/{mode}/{name}": value for mode, values in summary.items() for name, value in values.items()}


HELP = """usage: python -m grpo_bench.evaluate [checkpoint=DIR] [KEY=VALUE ...]

Evaluate a model on a task's test split (or dev with split=dev) and nothing else.

  python -m grpo_bench.evaluate model=qwen2.5-0.5b task=gsm8k eval.test_n=200     a pretrained model
  python -m grpo_bench.evaluate checkpoint=results/STUDY-TASK/RUN                  a run, at its newest checkpoint
  python -m grpo_bench.evaluate model=hf model.path=results/.../export task=gsm8k  an exported policy

out=FOLDER   keep eval.jsonl and result.json there     split=test|dev
Keys are those of python -m grpo_bench: task, model, rollout, eval.*, device. With checkpoint= they are the run's own,
and only eval.*, task.path, task.math500_path, model.path, rollout.*, device and threads may be given.
"""
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
    import sys

    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    try:
        own = {
            key: value for key, _, value in (w.partition("=") for w in words) if key in ("checkpoint", "out", "split")
        }
        rest = [word for word in words if word.partition("=")[0] not in own]
        if own.get("split", "test") not in ("test", "dev"):
            raise UserError(f"split={own['split']} is not known; choose test or dev")
        summary = _evaluate_alone(rest, own.get("checkpoint"), own.get("out"), own.get("split", "test"))
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    print(json.dumps(summary, indent=1))
    return 0


def _config_of(overrides: list[str], checkpoint: Path | None) -> Config:
    """The composed configuration, or a run's recorded one with what may be changed in it."""
    from omegaconf import OmegaConf

    from grpo_bench.compose import compose, composing, override_key
    from grpo_bench.config import parse

    if checkpoint is None:
        with composing():
            return parse(compose(overrides))
    if not (checkpoint / "config.yaml").is_file():
        raise UserError(f"checkpoint={checkpoint} holds no config.yaml; give the folder of a run")
    for word in overrides:
        key = override_key(word)
        if not any(key == k or key.startswith(k + ".") for k in OF_A_RUN):
            raise UserError(
                f"{key} belongs to the run and cannot be changed with checkpoint=; give {', '.join(OF_A_RUN)}"
            )
    recorded = OmegaConf.load(checkpoint / "config.yaml")
    return parse(OmegaConf.to_container(OmegaConf.merge(recorded, OmegaConf.from_dotlist(overrides))))  # type: ignore[arg-type]


def _evaluate_alone(overrides: list[str], checkpoint: str | None, out: str | None, split: str) -> dict[str, Any]:
    from grpo_bench import checkpoint as checkpoints
    from grpo_bench.files import disk_errors, write_atomic, write_json
    from grpo_bench.metrics import finite
    from grpo_bench.policy import Policy, choose_device, compute_dtype, load_model, load_tokenizer, make_models
    from grpo_bench.rollout import make_engine
    from grpo_bench.state import load_weights
    from grpo_bench.tasks import load_task

    folder = Path(checkpoint) if checkpoint is not None else None
    cfg = _config_of(overrides, folder)
    device = choose_device(cfg)
    dtype = compute_dtype(cfg.model.dtype, device)
    task = load_task(cfg.task, cfg.seed)
    try:
        tokenizer = load_tokenizer(cfg.model)
        task.fit(tokenizer)
        model = load_model(cfg.model, device)
        step = 0
        if folder is not None:
            policy = make_models(model, cfg.model, dtype, critic=False, reference=False).policy
            saved = checkpoints.newest(folder / "checkpoints")
            load_weights(policy, saved.tensors("policy"))
            step = saved.step
        else:
            policy = Policy(model, dtype)
        problems = task.test(cfg.eval.test_n) if split == "test" else task.dev(cfg.eval.n)
        engine = make_engine(cfg.rollout)
        rows = evaluate(
            cfg, task, policy, tokenizer, engine, problems, "test" if split == "test" else "dev", step, cfg.eval.samples
        )
    finally:
        task.close()
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
        with disk_errors(Path(out)):
            Path(out).mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)
            write_atomic(Path(out) / "eval.jsonl", lines.encode())
            write_json(Path(out) / "result.json", summary)
    return summary


if __name__ == "__main__":
    raise SystemExit(main())
