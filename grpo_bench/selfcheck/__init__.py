"""Checks that any algorithm must pass, a user's own included: a table of passes in seconds, without a model.

``python -m grpo_bench.selfcheck [algo=NAME ...]``; from code, ``verdicts(Subject("mine", algo))``.
"""

from __future__ import annotations

from grpo_bench.selfcheck import by_hand, extremes, gradients, invariances, structure
from grpo_bench.selfcheck.verdict import Check, NotApplicable, Outcome, Red, Subject, Undeclared, outcome

CHECKS: tuple[Check, ...] = (
    Check("shapes", "(B,T), the batch's dtype, 0 outside the mask; keep (B,) bool", structure.shapes),
    Check("tokens", "every sampled token, the end token included, has a weight and a gradient", structure.tokens),
    Check("differences", "gradients are those of finite differences, away from corners", gradients.finite_differences),
    Check("constants", "no gradient flows through advantages: on policy it is linear in them", gradients.constants),
    Check("acting", "rows without advantage have a gradient only where the class says so", gradients.acting),
    Check("KL sign", "a step on the KL lowers it; in the reward it costs", gradients.kl_sign),
    Check("critic", "a step on the value loss brings values nearer to their targets", structure.critic),
    Check("unread", "what was not asked for (None) is not read", structure.unread),
    Check("untouched", "the batch is not changed", structure.untouched),
    Check("padding", "more padding changes nothing", invariances.padding),
    Check("micro-batch", "any split into micro-batches gives one loss and gradient", invariances.micro_batches),
    Check("order", "the order of groups and of their members does not matter", invariances.order),
    Check("dropped", "dropped rows have no gradient and keep their place", structure.dropped),
    Check("shift", "one reward more for a whole group changes nothing, where declared", invariances.shift),
    Check("scale", "the unit of the reward changes nothing, where declared", invariances.scale),
    Check("more reward", "more reward never means less advantage", invariances.more_reward),
    Check("inert", "knobs that the class calls inert change nothing", invariances.inert),
    Check("zero variance", "groups of equal rewards: finite; rounding is no signal", extremes.flat),
    Check("G = 1", "groups of one: finite", extremes.single),
    Check("short", "one token each, groups without tokens: finite", extremes.short),
    Check("truncated", "all truncated: finite", extremes.truncated),
    Check("right", "all right: finite", extremes.right),
    Check("wrong", "all wrong: finite", extremes.wrong),
    Check("NaN reward", "raises, or the loss is NaN and the update skipped; never finite", extremes.nan_reward),
    Check("ratios", "log-ratios of 30 and 100: no NaN, no poisoned gradient", extremes.ratios),
    Check("lone winner", "[1,0,0,0,0,0,0,0] gets the advantages that the class declares", by_hand.lone_winner),
    Check("ddof", "ddof does to eight numbers what its name says", by_hand.ddof),
)


def verdicts(subject: Subject) -> dict[str, Outcome]:
    """Every check's outcome by its name, in the order of the table."""
    return {check.name: outcome(check, subject) for check in CHECKS}


__all__ = ["CHECKS", "Check", "NotApplicable", "Outcome", "Red", "Subject", "Undeclared", "outcome", "verdicts"]
