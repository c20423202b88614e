"""The reproducibility card: what the ACL and NeurIPS checklists ask of an experiment, answered from the records.

Items as in the ACL responsible-research checklist (computing infrastructure, parameters, budget, runs, hyper-parameter
search, statistics) and the NeurIPS paper checklist (code, data, settings, error bars, compute), as far as they apply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from grpo_bench.records import Run
from grpo_bench.stats import ESTIMAND
from grpo_bench.table.compare import Comparison
from grpo_bench.table.heading import each
from grpo_bench.table.layout import Sheet, count, memory
from grpo_bench.table.ledger import RATES, trials
from grpo_bench.table.siblings import sibling

LISTED = ("torch", "transformers", "tokenizers", "numpy", "hydra-core", "math-verify", "sympy")


def card_sheet(c: Comparison) -> Sheet:
    """Item and answer; what a record does not hold says so."""
    runs = [run for run in c.study.runs if run.config or run.result]
    rows = [[item, answer(c, runs)] for item, answer in ITEMS.items()]
    notes = ["Collected from the runs' own records (config.yaml, provenance.json, result.json); all values that occur."]
    return Sheet("card", "Reproducibility card", ["item", "of this study"], rows, notes, wide=True)


def _said(runs: Iterable[Run], read: Callable[[Run], Any]) -> str:
    return each(None if (value := read(run)) is None else str(value) for run in runs)


def _code(_: Comparison, runs: list[Run]) -> str:
    def commit(run: Run) -> str | None:
        git = run.provenance.get("git") or {}
        if not git.get("sha"):
            return None
        dirty = f" with uncommitted changes (diff {str(git.get('diff_sha256', ''))[:12]})" if git.get("dirty") else ""
        return f"{str(git['sha'])[:12]}{dirty}"

    version = _said(runs, lambda run: run.provenance.get("version"))
    return f"commit {_said(runs, commit)}, version {version}"


def _software(_: Comparison, runs: list[Run]) -> str:
    def packages(run: Run) -> str | None:
        found = run.provenance.get("packages") or {}
        return " ".join(f"{name} {found[name]}" for name in LISTED if name in found) or None

    python = _said(runs, lambda run: run.provenance.get("python"))
    return f"Python {python}; {_said(runs, packages)}; all of them in provenance.json"


def _machine(_: Comparison, runs: list[Run]) -> str:
    def place(run: Run) -> str | None:
        p = run.provenance
        if not p.get("cpu"):
            return None
        device = p.get("device") or {}
        gpus = Counter(device.get("gpus") or [])
        words = [f"{n} × {name}" for name, n in gpus.items()]
        words += [f"CUDA {device['cuda']}"] if device.get("cuda") else []
        words += [f"{p['cpu']}", f"{p.get('cpu_count')} cores"]
        words += [f"{device['torch_threads']} threads a run"] if device.get("torch_threads") else []
        return " / ".join([*words, str(p.get("platform"))])

    return _said(runs, place)


def _precision(_: Comparison, runs: list[Run]) -> str:
    def words(run: Run) -> str | None:
        dtype = (run.config.get("model") or {}).get("dtype")
        sampler = (run.config.get("rollout") or {}).get("dtype")
        if not dtype:
            return None
        return f"{dtype} compute with float32 master weights" + (f" / sampled in {sampler}" if sampler else "")

    return _said(runs, words)


def _model(_: Comparison, runs: list[Run]) -> str:
    def words(run: Run) -> str | None:
        model, prints = run.config.get("model") or {}, run.provenance.get("fingerprints") or {}
        if not model:
            return None
        said = [str(model.get("id") or model.get("name"))]
        said += [f"revision {model['revision']}"] if model.get("revision") else []
        sizes = run.cost.get("parameters") or {}
        said += [f"{count(sizes['policy'])} parameters"] if sizes.get("policy") else []
        said += [f"weights {prints['model']}"] if prints.get("model") else []
        said += [f"after the warm start {prints['warmstart']}"] if prints.get("warmstart") else []
        return " / ".join(said)

    return _said(runs, words)


def _data(_: Comparison, runs: list[Run]) -> str:
    def words(run: Run) -> str | None:
        task = run.config.get("task") or {}
        if not task:
            return None
        print_ = (run.provenance.get("fingerprints") or {}).get("data")
        hub = f" ({task['hub']})" if task.get("hub") else ""
        said = f"{task.get('name')} v{task.get('version')}{hub} / trained on {task.get('split')}"
        filters = {k: v for k, v in (task.get("filters") or {}).items() if v is not None}
        said += f" filtered by {filters}" if filters else ""
        return said + f" / tested on {task.get('eval_split')}" + (f" / fingerprint {print_}" if print_ else "")

    streams = len({(run.result or {}).get("prompt_stream_hash") for run in runs if run.result})
    return f"{_said(runs, words)}; {streams} prompt stream{'s' * (streams != 1)}, one a seed and shared by all rows"


def _prompt(_: Comparison, runs: list[Run]) -> str:
    def words(run: Run) -> str | None:
        task = run.config.get("task") or {}
        prompt = task.get("prompt") or {}
        if not prompt:
            return None
        said = f"{prompt.get('style')} / {prompt.get('template')!r}"
        said += f" / system {prompt['system']!r}" if prompt.get("system") else ""
        return said + (f" / {len(prompt['shots'])} shots" if prompt.get("shots") else "")

    return _said(runs, words)


def _decoding(_: Comparison, runs: list[Run]) -> str:
    def words(run: Run) -> str | None:
        task, rollout, how = (run.config.get(key) or {} for key in ("task", "rollout", "eval"))
        if not task:
            return None
        said = f"training: temperature {rollout.get('temperature')}, top_p {rollout.get('top_p')}, top_k "
        said += f"{rollout.get('top_k')} / test: greedy"
        if how.get("samples"):
            said += f" and {how['samples']} samples at {how.get('temperature')}"
        said += f" / at most {task.get('max_new_tokens')} tokens"
        return said + (f" / stop {task['stop']!r}" if task.get("stop") else "")

    return _said(runs, words)


def _answers(_: Comparison, runs: list[Run]) -> str:
    def words(run: Run) -> str | None:
        task = run.config.get("task") or {}
        if not task.get("answer"):
            return None
        version = (run.provenance.get("packages") or {}).get("math-verify") if task["answer"] == "math" else None
        return f"{task['answer']} rule, grpo_bench/tasks/grading.py" + (f", math-verify {version}" if version else "")

    return f"{_said(runs, words)}; the same for training and test; a truncated answer counts as wrong"


def _settings(c: Comparison, runs: list[Run]) -> str:
    def words(run: Run) -> str | None:
        optim = run.config.get("optim") or {}
        if not optim:
            return None
        return (
            f"AdamW betas {optim.get('betas')} / weight decay {optim.get('weight_decay')} / gradients clipped at "
            f"{optim.get('grad_clip')} / {optim.get('schedule')} rate after {optim.get('warmup_updates')} updates"
        )

    return f"{_said(runs, words)}; every other one, resolved, in each run's config.yaml ({len(c.arms)} rows)"


def _search(c: Comparison, runs: list[Run]) -> str:
    own = trials(c)
    study, found = (c, own) if own else (None, [])
    if not own and (other := sibling(c, "learning_rate")) is not None:
        study, found = other, trials(other)
    rates = {
        arm.label: ", ".join(f"{name} {arm.config[name]:g}" for name in RATES if arm.config.get(name) is not None)
        for arm in c.arms
        if arm.config
    }
    said = "rates in force: " + "; ".join(f"{label}: {value}" for label, value in rates.items())
    if study is None or not found:
        return f"{said}; no ledger of a search beside this study: it is not known here how they were chosen"
    grid = sorted({trial.rates[0] for trial in found if trial.rates[0] is not None})
    tried = {run.seed for run in study.study.runs}
    shared = tried & {run.seed for run in runs} if study is not c else set()
    said = f"lr of {', '.join(f'{rate:g}' for rate in grid)} for {', '.join(dict.fromkeys(t.arm for t in found))}, "
    said += f"seeds {', '.join(map(str, sorted(tried)))}, chosen on dev ({study.study.name}); rates in force: "
    said += "; ".join(f"{label}: {value}" for label, value in rates.items())
    return said + (f"; seeds {sorted(shared)} are in both, so these runs helped to choose" if shared else "")


def _runs(c: Comparison, _: list[Run]) -> str:
    by = Counter(run.status for run in c.study.runs)
    said = ", ".join(f"{n} {status}" for status, n in by.items())
    attempts = sum(run.attempts for run in c.study.runs)
    evaluations = sum(sum(1 for row in run.metrics if "eval/dev/greedy/acc" in row) for run in c.study.runs)
    return (
        f"{len(c.study.runs)} of the sweep: {said}; {attempts} attempts begun; {evaluations} evaluations on dev and "
        "one on test per finished run; every run of the folder is in the tables"
    )


def _budget(_: Comparison, runs: list[Run]) -> str:
    seconds = [float((run.cost.get("seconds") or {}).get("total") or 0.0) for run in runs]
    flops = sum(float(run.cost.get("flops") or 0.0) for run in runs)
    peak = max((float(run.cost.get("peak_memory_bytes") or 0.0) for run in runs), default=0.0)
    gpus = any((run.provenance.get("device") or {}).get("gpus") for run in runs)
    hours = sum(seconds) / 3600
    said = f"{hours:.2f} {'GPU' if gpus else 'run'}-hours in all, evaluation included"
    said += f" (longest run {max(seconds, default=0):,.0f} s)"
    return f"{said}; {flops:.2e} FLOPs, estimated; peak memory of a run {memory(peak or None)}; energy not measured"


def _when(_: Comparison, runs: list[Run]) -> str:
    started = sorted(str(run.provenance["started"]) for run in runs if run.provenance.get("started"))
    return f"begun {started[0]} to {started[-1]}" if started else "not recorded"


def _statistics(c: Comparison, runs: list[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    n = {len(arm.scored) for arm in c.arms}
    return (
        f"{min(n)}{f' to {max(n)}' if len(n) > 1 else ''} seeds a row ({', '.join(map(str, seeds))}), which set the "
        f"order of prompts, the sampling and the order of minibatches; {ESTIMAND} Margin ±{100 * c.margin:g} points."
    )


def _randomness(_: Comparison, runs: list[Run]) -> str:
    resumed = sum(run.attempts > 1 for run in runs)
    said = "keyed by (seed, step, row, position): the same machine, threads and torch give the same bits"
    return said + (f"; {resumed} runs were continued after an interruption" if resumed else "")


def _records(c: Comparison, _: list[Run]) -> str:
    files = ("config.yaml", "metrics.jsonl", "eval.jsonl.gz", "provenance.json")
    kept = all((run.directory / name).is_file() for run in c.study.runs if run.status == "complete" for name in files)
    said = "every answer to every test problem (eval.jsonl.gz), metrics of every step, configuration, environment"
    return said if kept else f"{said}; some files are not in this folder"


def _tables(c: Comparison, _: list[Run]) -> str:
    folder = c.study.folder.resolve()
    return f"`python -m grpo_bench.table {folder.parent.name}/{folder.name}`, from records alone"


ITEMS: dict[str, Callable[[Comparison, list[Run]], str]] = {
    "code": _code,
    "software": _software,
    "machine": _machine,
    "precision": _precision,
    "model and tokenizer": _model,
    "data and splits": _data,
    "prompt": _prompt,
    "decoding": _decoding,
    "extraction and equality of answers": _answers,
    "optimiser and settings": _settings,
    "hyper-parameter search": _search,
    "runs": _runs,
    "statistics": _statistics,
    "randomness": _randomness,
    "computing budget": _budget,
    "when": _when,
    "what is kept": _records,
    "tables": _tables,
}
