"""START HERE: one run, top to bottom."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from grpo_bench import rewards
from grpo_bench.baselines import Baselines
from grpo_bench.collect import Experience, describe, drop
from grpo_bench.console import Console
from grpo_bench.cost import Meter, Size
from grpo_bench.diagnose import diagnose
from grpo_bench.diagnose.text import as_lines
from grpo_bench.evaluate import Summary, evaluate, flat, summarise
from grpo_bench.gather import gather, scores_first, with_extras
from grpo_bench.gradient_noise import gradient_noise
from grpo_bench.identity import config_hash, run_id
from grpo_bench.policy import (
    Policy,
    check_lengths,
    choose_device,
    compute_dtype,
    load_model,
    load_tokenizer,
    make_models,
)
from grpo_bench.record import RunRecord
from grpo_bench.records import load_run
from grpo_bench.rollout import make_engine
from grpo_bench.signals import costs, health, score_flops, shown, signals, throughput
from grpo_bench.state import Parts, State, from_checkpoint, result_of, to_checkpoint
from grpo_bench.tasks import load_task
from grpo_bench.tasks.grader import grader
from grpo_bench.trackers import completion_rows, make_tracker, withholds
from grpo_bench.types import Batch, UserError
from grpo_bench.update import Learner

if TYPE_CHECKING:
    from grpo_bench.config import Config

DIVERGED_AFTER = 5  # steps in a row with a loss or gradient that is not finite
SAMPLES_SHOWN = 8  # completions of each step kept in samples.jsonl


def run(cfg: Config, directory: Path) -> dict[str, Any]:
    """Train and evaluate as ``cfg`` says, continue what ``directory`` holds; returns the content of result.json."""
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg)
    dtype = compute_dtype(cfg.model.dtype, device)
    console = Console()
    task = load_task(cfg.task, cfg.seed)
    try:
        tokenizer = load_tokenizer(cfg.model)
        task.fit(tokenizer)
        for note in task.notes:
            console.note(note)
        meter = Meter(device)
        model = load_model(cfg.model, device)
        check_lengths(model, cfg)
        engine = make_engine(cfg.rollout)
        rewards.load(cfg)
        # this policy has no name here: what an engine keeps for it (a copy of its weights) goes when it does
        before = Baselines(cfg, directory.parent, task, Policy(model, dtype), tokenizer, engine, console)

        algo = cfg.algo
        reference = algo.needs_reference and (cfg.kl_coef > 0 or algo.kl.control == "adaptive")
        models = make_models(model, cfg.model, dtype, algo.needs_critic, reference or cfg.measure_kl)
        learner = Learner(cfg, algo, models, meter.part)
        meta = {
            "run_id": run_id(cfg),
            "arm": cfg.arm or algo.name,
            "row": cfg.row or cfg.arm or algo.name,
            "algo": algo.name,
            "model": cfg.model.name,
            "task": cfg.task.name,
            "study": cfg.study.name,
            "seed": cfg.seed,
            "config_hash": config_hash(cfg),
            "prompt_stream_hash": task.prompt_stream_hash,
            "fingerprints": {"data": task.fingerprint, "grader": grader(cfg.task.answer), **before.prints},
        }
        record = RunRecord(directory, cfg, meta=meta, device=device.type)
        checkpoint = record.start()
        parts = Parts(cfg, task, tokenizer, engine, models, learner, meter, Size.of(model))
        tracker = make_tracker(cfg, directory, meta["run_id"], checkpoint is not None)
        if withholds(cfg):
            console.note(f"wandb gets completions of {cfg.task.name} by id, without questions and gold answers")
        code, result, found = 1, {}, []
        try:
            state = from_checkpoint(checkpoint, parts) if checkpoint else State()
            meter.forget_peak()
            parts.bystanders.begin(state.machine)
            console.begin(state.spent(cfg.budget.unit, meter.training) / cfg.budget.amount)
            status = train(parts, state, record, tracker, console)
            final = look(parts, state, record, console, "test")
            before.finish()
            summaries = {**before.summaries, "final": final}
            if cfg.export:
                models.policy.export(directory / "export", tokenizer)
            reason = f"loss or gradient not finite in {DIVERGED_AFTER} steps in a row, the last being {state.step}"
            result = result_of(parts, state, summaries, before.folders, status, reason if status == "diverged" else "")
            result = record.finish(result)
            code = 0
            console.last_line(result, directory)
            found = diagnose(load_run(directory))
            record.diagnosis([asdict(finding) for finding in found])
            for line in as_lines(found):
                console.note(line)
            return result
        except (KeyboardInterrupt, SystemExit) as e:
            code = e.code if isinstance(e, SystemExit) and isinstance(e.code, int) else 130
            record.stop("failed", "interrupted", code)
            raise
        except BaseException as e:
            code = 2 if isinstance(e, UserError) else 1
            record.stop("failed", str(e) if code == 2 else f"{type(e).__name__}: {e}", code)
            raise
        finally:
            tracker.finish(code, result and {**result, "diagnosis": ", ".join(finding.kind for finding in found)})
            record.close()
    finally:
        console.close()
        task.close()


def train(parts: Parts, state: State, record: RunRecord, tracker: Any, console: Console) -> str:
    """Steps until the budget is reached; returns complete or diverged."""
    cfg, meter = parts.cfg, parts.meter
    unit, amount = cfg.budget.unit, cfg.budget.amount
    if state.step == 0 and cfg.eval.every:  # where the curves begin
        line = {**state.counters(), **flat("dev", look(parts, state, record, console, "dev"))}
        timing: dict[str, Any] = {"elapsed_s": sum(meter.total.values()), "seconds": meter.end_step()}
        record.step(0, line, timing)
        tracker.log({**line, **timing}, 0)
        meter.forget_peak()
    while (spent := state.spent(unit, meter.training)) < amount:
        state.step += 1
        scored = state.reward_model.get("seconds", 0.0)
        experience, batch, metrics = one_step(parts, state, spent / amount)
        state.peak_memory = max(state.peak_memory, meter.peak_memory())  # of training alone: evaluation comes after
        looked = cfg.eval.every > 0 and state.step % cfg.eval.every == 0
        if looked:
            metrics |= flat("dev", look(parts, state, record, console, "dev"))
        rows_shown = shown(experience, batch, state.step, max(SAMPLES_SHOWN, cfg.tracker.completions))
        record.samples(rows_shown[:SAMPLES_SHOWN])
        done = state.spent(unit, meter.training) / amount
        last = done >= 1 or state.nan_in_a_row >= DIVERGED_AFTER
        seconds = meter.end_step()
        timing = {
            "elapsed_s": sum(meter.total.values()),
            "seconds": seconds,
            "peak_memory_bytes": state.peak_memory,
            **throughput(metrics, seconds),
            **parts.task.verifier_health(),
            **({"time/reward_model_s": state.reward_model["seconds"] - scored} if state.reward_model else {}),
        }
        line = {**state.counters(), **metrics}
        record.step(state.step, line, timing)
        tracker.log({**line, **timing}, state.step)
        if cfg.tracker.completions and state.step % cfg.tracker.completions_every == 0:
            rows = completion_rows(cfg, rows_shown[: cfg.tracker.completions], experience.rows)
            tracker.completions(rows, state.step)
        console.step(state.step, min(done, 1.0), line)
        if cfg.checkpoint.every and (last or state.step % cfg.checkpoint.every == 0):
            with meter.phase("ckpt"):
                record.checkpoint(state.step, *to_checkpoint(parts, state))
        if state.nan_in_a_row >= DIVERGED_AFTER:
            return "diverged"
        if looked or meter.step:  # evaluation and checkpoints are no part of the training's peak
            meter.forget_peak()
    return "complete"


def one_step(parts: Parts, state: State, progress: float) -> tuple[Experience, Batch, dict[str, Any]]:
    """One rollout and its updates."""
    cfg, algo, learner, meter = parts.cfg, parts.cfg.algo, parts.learner, parts.meter
    before = replace(state)
    # one update per rollout: the update's own forward gives the old log-probs
    old = cfg.epochs * cfg.minibatches > 1 or algo.needs_old_logp

    def scored(batch: Batch) -> Batch:
        with meter.phase("score"):
            batch = drop(batch, batch.finished) if cfg.mask_truncated else batch
            return learner.scored(batch, old)

    ahead = scores_first(parts)
    gathered = gather(parts, state, scored if ahead else None)
    experience, batch = gathered.experience, gathered.experience.batch
    batch = drop(batch, gathered.used & (batch.finished if cfg.mask_truncated else gathered.used))
    batch = with_extras(parts, state, experience, batch)
    state.charge_reward(rewards.take_cost(cfg))

    if algo.credits_unscored:  # then groups without signal need not be scored
        batch = algo.credited(batch)
    batch = batch if ahead else scored(batch)
    with meter.phase("score"), torch.no_grad():
        looked_at = replace(batch, advantages=None) if ahead else batch  # as it was when it was scored
        state.flops += score_flops(parts, drop(batch, ~learner.unscored(looked_at, old)), old)
        if not algo.credits_unscored:
            batch = algo.credited(batch)
    noise: dict[str, float] = {}
    if cfg.grad_noise_every and state.step % cfg.grad_noise_every == 0 and state.step > algo.frozen_steps:
        with meter.phase("eval"):  # a measurement, in no training budget
            noise = gradient_noise(learner, batch)
    with meter.phase("update"):
        metrics: dict[str, Any] = describe(gathered.sampled, gathered.kept, gathered.taken) | signals(batch) | noise
        updated = learner.update(batch, state.step, progress)
    metrics = updated | metrics if old else metrics | updated  # scored KLs are of the policy that sampled
    state.updates += int(updated["policy/n_updates"])
    if state.step <= algo.frozen_steps:
        state.warmup_updates += cfg.epochs * cfg.minibatches
    else:
        state.empty_updates += learner.empty_updates
    state.trained_tokens += learner.trained_tokens
    state.flops += learner.flops

    measured = metrics.get("kl/ref_k3_token") if algo.kl.to == "reference" else updated.get("policy/kl_old")
    seen = {"samples": float(len(batch.mask)), **({"kl": measured} if measured is not None else {})}
    state.algo |= algo.next_state(replace(batch, state={**state.algo, **seen}))
    metrics |= {"kl/coef": batch.kl_coef, "group/refills": gathered.refills, "group/skipped": learner.skipped_groups}
    metrics |= costs(before, state)
    health(state, metrics, updated)
    return experience, batch, metrics


def look(parts: Parts, state: State, record: RunRecord, console: Console, split: Literal["dev", "test"]) -> Summary:
    """Evaluate the policy as it is now; dev while training, test once at the end: the headline."""
    cfg, task = parts.cfg, parts.task
    problems = task.dev(cfg.eval.n) if split == "dev" else task.test(cfg.eval.test_n)
    samples = cfg.eval.samples if split == "test" or cfg.eval.dev_samples is None else cfg.eval.dev_samples
    with parts.meter.phase("eval"):
        rows = evaluate(
            cfg, task, parts.models.policy, parts.tokenizer, parts.engine, problems, split, state.step,
            samples, progress=console.evaluation,
        )  # fmt: skip
    record.evals(rows)
    return summarise(rows, cfg.eval.ks, cfg.task.answer)
