"""``python -m grpo_bench.speed [KEY=VALUE ...]``: measures, and writes the measurements with their table and plots."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grpo_bench import provenance
from grpo_bench.config_errors import ConfigError
from grpo_bench.files import Journal, disk_errors
from grpo_bench.speed import workloads
from grpo_bench.speed.child import Spec
from grpo_bench.speed.driver import DEADLINE, Failed, Runner, entries, measure, workshop
from grpo_bench.speed.summary import CURVES, MEASUREMENTS
from grpo_bench.speed.table import write
from grpo_bench.speed.workloads import Workload
from grpo_bench.types import UserError

HELP = """usage: python -m grpo_bench.speed [KEY=VALUE ...]

Step time, tokens/s, memory, and what fraction of this machine's floor is reached: this project's engines beside TRL's
trainers where they are installed. Contenders take turns, each in a process of its own. No arguments: the embedded
model, minutes.

  python -m grpo_bench.speed workload=smollm2 model.path=FILE task.path=DIR
  python -m grpo_bench.speed workload=gpu                   ends within 9 minutes
  python -m grpo_bench.speed workload=llama3m curves=all    growth curves in place of contenders

workload=NAME       {names}; without weights a random model of the same shape
contenders=A,B      native, hf, ppo, ppo-shared; trl, trl-pure (bfloat16 weights), trl-ppo;
                    decode-native, decode-hf, decode-continuous; TRL's take +checkpointing, +accumulationN, +continuous
dtype=A,B           float32, bfloat16
repetitions=N steps=N seconds=N     visits of each contender, measured steps of a visit, limit of the whole
turns=steps         contenders stay in memory together and take one step each in turns: what a machine of changing
                    speed needs; turns=visits (default) one after the other
prompts=N group_size=N tokens=N prompt_tokens=N      another shape of a step
curves=A,B          group, prompt, completion, batch, size, or all; scale=N makes them larger
trl_ppo_python=FILE an interpreter that has TRL 1.10 (the last with a PPO trainer)
threads=N out=DIR machine=NAME      machine: what this one is called in the folder's name
Other keys are those of python -m grpo_bench (model=, model.path=, task.path=, device=, rollout.*).
Again from the measurements: python -m grpo_bench.speed.table DIR
"""
NUMBERS = ("repetitions", "steps", "prompts", "group_size", "tokens", "prompt_tokens")
LISTS = {"contenders": "contenders", "dtype": "dtypes"}


@dataclass
class Arguments:
    """The command line, sorted."""

    workload: Workload
    config: dict[str, str] = field(default_factory=dict)  # keys of a run
    threads: int | None = None
    out: Path | None = None
    machine: str | None = None
    curves: list[str] = field(default_factory=list)
    scale: int = 1
    trl_ppo_python: str | None = None


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 2 with one line on stderr for bad input; 130 when interrupted, what was measured being kept."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(HELP.format(names=", ".join(workloads.WORKLOADS)), end="")
        return 0
    try:
        given = arguments(words)
        spec = check(given)
        with workshop() as folder:
            text, paths = run(given, spec, Runner(folder, given.trl_ppo_python), words)
    except UserError as error:
        for line in error.lines if isinstance(error, ConfigError) else [str(error)]:
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; python -m grpo_bench.speed.table DIR makes the table of what was measured", file=sys.stderr)
        return 130
    print(text, end="")
    for path in paths:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def arguments(words: list[str]) -> Arguments:
    """The command line, sorted; UserError for what cannot be meant."""
    given: dict[str, str] = {}
    for word in words:
        key, is_pair, value = word.partition("=")
        if not is_pair or not key or not value or key.startswith("-"):
            raise UserError(f"{word!r} is not key=value; see python -m grpo_bench.speed --help")
        given[key] = value
    changes: dict[str, Any] = {key: _number(key, given.pop(key)) for key in NUMBERS if key in given}
    for key, name in LISTS.items():
        if key in given:
            changes[name] = tuple(word for word in given.pop(key).split(",") if word)
    if "turns" in given:
        changes["turns"] = given.pop("turns")
    if "seconds" in given:
        changes["seconds"] = float(_number("seconds", given.pop("seconds")))
    out = Arguments(workloads.choose(given.pop("workload", "tiny"), changes))
    entries(out.workload)
    out.threads = _number("threads", given.pop("threads")) if "threads" in given else None
    out.scale = _number("scale", given.pop("scale", "1"))
    out.out = Path(given.pop("out")) if "out" in given else None
    out.machine = given.pop("machine", None)
    out.curves = workloads.named(given.pop("curves")) if "curves" in given else []
    out.trl_ppo_python = given.pop("trl_ppo_python", None)
    if out.trl_ppo_python is not None and not Path(out.trl_ppo_python).is_file():
        raise UserError(f"trl_ppo_python={out.trl_ppo_python}: there is no such file; give a Python interpreter")
    out.config = given
    return out


def _number(key: str, value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"{key}={value}: should be a whole number, at least 1")
    return int(value)


def check(given: Arguments) -> Spec:
    """The children's specification, its configuration composed once here: a bad key is refused before anything runs."""
    from grpo_bench.compose import compose, composing
    from grpo_bench.config import parse

    w = given.workload
    lines = workloads.overrides(w, given.config)
    with composing():
        config = parse(compose(["algo=grpo", "lr=1.0e-6", *lines]))
    for key, path in (("model.path", config.model.path), ("task.path", config.task.path)):
        if path is not None and not Path(path).exists():  # each contender would find it out by itself, minutes apart
            raise UserError(f"{key}={path} does not exist; give a local copy, or leave {key} out")
    return Spec(
        contender="machine", dtype=w.dtypes[0], overrides=lines, prompts=w.prompts, group_size=w.group_size,
        tokens=w.tokens, prompt_tokens=workloads.stretched(w, given.config), steps=w.steps, threads=given.threads,
    )  # fmt: skip


def run(given: Arguments, spec: Spec, runner: Runner, words: list[str]) -> tuple[str, list[Path]]:
    """Measure, keep every row as it comes, and write the table; (its text, the paths written)."""
    w, begun = given.workload, time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {line}", file=sys.stderr, flush=True)

    spec = replace(spec, folder=str(runner.folder))
    folder = given.out or Path("results/speed") / f"{w.name}-{given.machine or machine_name(runner, spec)}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / (CURVES if given.curves else MEASUREMENTS))
    journal.rewind(None)
    try:
        journal.append(heading(given, spec, words))
        rows = growth(given, spec, runner, say) if given.curves else measure(w, spec, runner, say)
        for row in rows:
            journal.append(row)
    finally:
        journal.close()
    return write(folder)


def growth(given: Arguments, spec: Spec, runner: Runner, say: Any) -> Any:
    """Rows of curves.jsonl, one child per curve and precision."""
    w = given.workload
    for kind in given.curves:
        for dtype in w.dtypes:
            say(f"curve {kind}, {dtype}")
            asked = {"kind": kind, "scale": given.scale, "repetitions": w.repetitions}
            one = replace(spec, contender="curves", dtype=dtype, curves=asked)
            try:
                result = runner.visit(one, min(DEADLINE, w.seconds or DEADLINE))
                idle = runner.visit(replace(one, contender="idle", modules=result["imported"]))["bytes"]
            except Failed as e:
                say(f"curve {kind}, {dtype}: {e}")
                yield {"kind": "failed", "contender": f"curve {kind}", "dtype": dtype, "reason": str(e)}
                continue
            for row in result["rows"]:
                model = "random models" if kind == "size" else _model(given)
                yield {"kind": "curve", "dtype": dtype, "model": model, "idle_bytes": idle, **row}


def heading(given: Arguments, spec: Spec, words: list[str]) -> dict[str, Any]:
    """The first row: what was measured and where it came from; no paths, no names of people or hosts."""
    made = provenance.collect({"seed": 0}, 1, None)
    packages = dict(made["packages"])
    for name in ("trl", "accelerate"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    kept = ("torch", "transformers", "trl", "accelerate", "numpy")
    real = spec.prompt_tokens is None
    return {
        "kind": "run",
        "workload": asdict(given.workload),
        "model": _model(given),
        "prompts": "the task's own" if real else f"the task's, repeated to {spec.prompt_tokens} tokens each",
        "overrides": provenance.base_names(spec.overrides),
        "provenance": {
            **{key: made[key] for key in ("started", "version", "python", "platform", "cpu", "cpu_count")},
            "git_sha": provenance.git_sha(),
            "packages": {name: packages[name] for name in kept if name in packages},
            "command": " ".join(["python -m grpo_bench.speed", *provenance.base_names(words)]),
        },
    }


def _model(given: Arguments) -> str:
    own = next((given.config[key] for key in ("model.path", "model.id", "model") if key in given.config), None)
    if own is not None:
        return str(provenance.base_names(own, whole=True))
    return "random, of its shape" if given.workload.shape else "the embedded one, as initialised"


def machine_name(runner: Runner, spec: Spec) -> str:
    """What the folder is called after: the GPU, or the processor and its threads."""
    try:
        device = runner.visit(replace(spec, contender="device"))["device"]
    except Failed as e:
        raise UserError(f"nothing can be measured here: {e}") from None
    name = device.get("gpu") or f"{provenance.collect({}, 1, None)['cpu']} {device['threads']} threads"
    words = re.sub(r"\((?:R|TM|r|tm)\)|@.*GHz|CPU|Processor", " ", name)
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "machine"
