"""A split -> one row per (problem, sample), and their summary. On the command line: evaluate_cli.py."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from grpo_bench.ops import pass_at_k
from grpo_bench.rollout import Engine, Noise, Sampling
from grpo_bench.tasks import Task
from grpo_bench.tasks.grading import correct, vote_key
from grpo_bench.tasks.overlap import Grading
from grpo_bench.types import Problem, Rollouts

if TYPE_CHECKING:
    from grpo_bench.config import Config
    from grpo_bench.policy import Policy

Row = dict[str, Any]
Summary = dict[str, dict[str, float | None]]  # greedy, sampled -> metric -> value
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
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Greedy answers, and ``samples`` sampled ones per problem, graded: rows as in ``eval.jsonl``.

    ``progress(done, total)`` is called as completions end, greedy and sampled counted together. Answers are graded as
    they end; what is left of the greedy ones while others are sampled.
    """
    prompts = task.prompt_ids(problems, tokenizer)
    answered: list[tuple[str, int, list[Problem], Rollouts, Grading]] = []
    done_before = 0
    total = len(problems) * (1 + samples)
    for mode, count, temperature in (("greedy", 1, 0.0), ("sampled", samples, cfg.eval.temperature)):
        if count == 0:
            continue
        sampling = Sampling(temperature, cfg.task.max_new_tokens, stop=tuple(cfg.task.stop))

        def told(done: int, earlier: int = done_before) -> None:
            assert progress is not None
            progress(earlier + done, total)

        members = [problem for problem in problems for _ in range(count)]
        grading = task.grading(members)
        out = engine.generate(
            policy, tokenizer, prompts, count, sampling, Noise(EVAL_SEED, split),
            None if progress is None else told, grading.listener,
        )  # fmt: skip
        answered.append((mode, count, members, out, grading))
        done_before += len(members)
    rows: list[Row] = []
    for mode, count, members, out, grading in answered:
        for i, (problem, grade) in enumerate(zip(members, grading.result(out.texts), strict=True)):
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
                    "correct": correct(grade, out.finished[i]),
                    "length": len(out.completion_ids[i]),
                    "finished": out.finished[i],
                }
            )
    return rows


def summarise(rows: Sequence[Row], ks: Sequence[int], rule: Literal["gsm8k", "math"]) -> Summary:
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


def main(argv: list[str] | None = None) -> int:
    """``python -m grpo_bench.evaluate``, see evaluate_cli.py."""
    from grpo_bench.evaluate_cli import main

    return main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
