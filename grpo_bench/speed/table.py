"""``python -m grpo_bench.speed.table DIR``: README.md, speed.json and the plots again, from the measurements alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from grpo_bench.files import write_atomic, write_json
from grpo_bench.speed.summary import CURVES, MEASUREMENTS, read, summarise
from grpo_bench.speed.workloads import CURVES as CURVE_KINDS
from grpo_bench.types import UserError

USAGE = "python -m grpo_bench.speed.table results/speed/<workload>-<machine>"
NAMES = {
    "native": "grpo_bench, GRPO",
    "hf": "grpo_bench, GRPO, `rollout=hf`",
    "ppo": "grpo_bench, PPO, separate critic",
    "ppo-shared": "grpo_bench, PPO, shared trunk",
    "trl": "TRL GRPOTrainer",
    "trl-pure": "TRL GRPOTrainer, bfloat16 weights",
    "trl-ppo": "TRL PPOTrainer (1.10)",
    "decode-native": "sampling only: `native`",
    "decode-hf": "sampling only: `hf`",
    "decode-continuous": "sampling only: transformers' continuous batching",
}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(f"usage: {USAGE}")
        return 0
    try:
        if len(words) != 1 or words[0].startswith("-"):
            raise UserError(f"one folder of measurements is needed; usage: {USAGE}")
        text, paths = write(Path(words[0]))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(text, end="")
    for path in paths:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def write(folder: Path) -> tuple[str, list[Path]]:
    """(table, paths of the files written into the folder). UserError when nothing was measured there."""
    from grpo_bench.speed.plot import draw

    rows = [row for name in (MEASUREMENTS, CURVES) if (folder / name).is_file() for row in read(folder / name)]
    headings = [row for row in rows if row["kind"] == "run"]
    if not headings:
        raise UserError(f"{folder} holds no measurements; measure first: python -m grpo_bench.speed")
    heading = headings[0]
    summary = summarise(rows, rows)
    figures = draw(summary, heading["workload"]["title"], folder)
    text = render(heading, summary, [path.name for path in figures if path.suffix == ".png"])
    write_json(folder / "speed.json", {"run": heading, **summary})
    write_atomic(folder / "README.md", text.encode())
    return text, [folder / "README.md", folder / "speed.json", *figures]


def render(heading: dict[str, Any], summary: dict[str, Any], figures: list[str]) -> str:
    """The page in Markdown."""
    w, made = heading["workload"], heading["provenance"]
    parts = [f"# Speed: {w['title']}", "\n".join(f"- {line}" for line in _facts(heading, summary))]
    if summary["contenders"]:
        parts += ["## A whole step", _steps(summary), _note(heading), _states(summary)]
    if summary["against_peers"]:
        parts += ["## Beside the peers", _peers(summary, heading["workload"].get("turns") == "steps")]
    if summary["floors"]:
        parts += ["## Beside the floor", _floors(summary), _FLOOR_NOTE]
    if summary["ppo_to_grpo"]:
        parts += ["## PPO beside GRPO", _critics(summary), _CRITIC_NOTE]
    if summary["curves"]:
        parts += ["## Growth", *(_curve(name, places) for name, places in summary["curves"].items())]
    if summary["left_out"]:
        lines = [f"- {_name(r['contender'])}{_in(r['dtype'])}: {r['reason']}" for r in summary["left_out"]]
        parts += ["## Not measured", "\n".join(dict.fromkeys(lines))]
    parts += [f"![{Path(name).stem}]({name})" for name in figures]
    parts.append(
        f"Made by `{made['command']}` on {made['started']}; again from the measurements: `python -m "
        "grpo_bench.speed.table DIR`."
    )
    return "\n\n".join(parts) + "\n"


def _facts(heading: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    w, made, machine = heading["workload"], heading["provenance"], summary["machine"]
    lines = [
        f"model: {heading['model']}; prompts: {heading['prompts']}",
        f"a step: {w['prompts']} prompts x {w['group_size']} completions of exactly {w['tokens']} tokens (no end "
        "token), one update, no KL; rewards 0 and 1 within every group; no record, log or evaluation on either side",
    ]
    if machine:
        device = machine["device"]
        name = device.get("gpu") or f"{made['cpu']}, {device['threads']} threads"
        if device.get("kernels") is not None:
            name += f", sampling {'by compiled kernels' if device['kernels'] else 'through torch'}"
        rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in machine["rates"].items())
        lines.append(f"machine: {name}; measured here: memory {machine['bandwidth'] / 1e9:.1f} GB/s, products {rates}")
    sha, _, dirty = made["git_sha"].partition("-")
    revision = sha[:12] + (f"-{dirty}" if dirty else "")
    versions = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    return [*lines, f"versions: Python {made['python']}, {versions}; revision {revision}"]


def _steps(summary: dict[str, Any]) -> str:
    head = [
        "contender", "precision", "s a step", "rollout", "reward", "score", "update", "samples/s", "tokens/s sampled",
        "GB above idle", "MFU", "steps",
    ]  # fmt: skip
    rows = []
    for line in summary["contenders"]:
        memory = line["memory_above_idle"]
        rows.append(
            [
                _name(line["contender"]), line["dtype"], _spread(line["seconds"]),
                *(f"{line['phases'][phase]:.3g}" for phase in ("rollout", "reward", "score", "update")),
                f"{line['samples_per_s']['median']:.3g}", f"{line['tokens_per_s']['median']:,.0f}",
                _spread({**memory, **{k: memory[k] / 1e9 for k in ("median", "low", "high")}}),
                f"{100 * line['mfu']:.0f} %" if "mfu" in line else "", str(line["seconds"]["n"]),
            ]
        )  # fmt: skip
    return _table(head, rows)


def _note(heading: dict[str, Any]) -> str:
    if heading["workload"].get("turns") != "steps":
        return _STEP_NOTE.format("contenders in turns")
    return _STEP_NOTE.format("contenders in memory together, one step each in turns, one running at a time")


_STEP_NOTE = (
    "Seconds: median [lowest, highest] over all measured steps, each repetition in a process of its own, {}; phases "
    "are medians (a peer's are where its own functions allow to tell them apart, the rest is update). "
    "Memory: peak of the measured steps above a process that has only imported the same modules. MFU: FLOPs of the "
    "work itself (a prompt once per group, logits at sampled tokens) over time and measured matrix rate."
)


def _states(summary: dict[str, Any]) -> str:
    lines = []
    prompts = {line["prompt_tokens"] for line in summary["contenders"] if line["prompt_tokens"]}
    for line in summary["contenders"]:
        lines.append(f"- {_name(line['contender'])}, {line['dtype']}: {line['states']}")
    if len(prompts) > 1:
        lines.append(f"- prompt tokens of the first measured step differ between contenders: {sorted(prompts)}")
    return "\n".join(dict.fromkeys(lines))


def _peers(summary: dict[str, Any], in_turns: bool) -> str:
    pairs = ["median of each two steps in turns"] if in_turns else []
    head = ["", "beside", "precision", "times faster, a step", *pairs, "times faster, rollout", "its memory is"]
    rows = [
        [
            _name(c["contender"]), _name(c["peer"]), c["dtype"], _spread(c["times_faster"]),
            *([_spread(c["times_faster_by_pairs"])] if in_turns else []),
            f"{c['times_faster_rollout']:.3g}", f"{100 * c['memory_share']['median']:.0f} % of the peer's",
        ]
        for c in summary["against_peers"]
    ]  # fmt: skip
    return _table(head, rows)


def _floors(summary: dict[str, Any]) -> str:
    head = [
        "", "precision", "seconds", "hardware floor, s", "reached", "its products alone, s",
        "of the step beside them", "at their best, s", "of the median",
    ]  # fmt: skip
    rows = []
    for f in summary["floors"]:
        for kind in ("rollout", "training"):
            part = f[kind]
            rows.append(
                [
                    kind, f["dtype"], f"{part['seconds']:.3g}", f"{part['floor_s']:.3g}",
                    f"{100 * part['fraction']:.0f} %", f"{part['products_s']:.3g}",
                    _percent(part["fraction_of_products"]), f"{part['best_s']:.3g}",
                    f"{100 * part['fraction_of_best']:.0f} %",
                ]
            )  # fmt: skip
        before = f["prefill"]
        floor = f"{before['floor_s']:.3g}"
        rows.append(["prefill", f["dtype"], f"{before['seconds']:.3g}", floor, _share(before), *["–"] * 4])
    return _table(head, rows)


def _percent(s: dict[str, Any]) -> str:
    return f"{100 * s['median']:.0f} % [{100 * s['low']:.0f}, {100 * s['high']:.0f}]"


def _share(part: dict[str, float]) -> str:
    return f"{100 * part['floor_s'] / part['seconds']:.0f} %" if part["seconds"] else "–"


_FLOOR_NOTE = (
    "Hardware floor of a rollout: the prompts' forward at the measured rate; then each decode step reads weights, "
    "keys and values once at the measured bandwidth, or multiplies at the measured rate, whichever takes longer. Of "
    "training: three passes over the work's tokens at the measured rate. Products alone: the linear layers of the "
    "decode steps and of the update, same shapes, in the same process (the prompts' forward, attention, norms, "
    "sampling and the optimiser are not in it), in the fastest of this program's ways, timed before and after each of "
    "some further steps: the median [lowest, highest] of the share that they would take of the rollout or the "
    "training between. More than 100 % says that other programs were in the way. At their best: the shortest of "
    "repeated runs (of one decode step, times the steps), beside the medians of the measured steps. Prefill: a "
    "rollout of one token after an update, with the copy of the weights that is sampled from and room for it."
)


def _critics(summary: dict[str, Any]) -> str:
    head = ["critic", "precision", "PPO / GRPO, time", "FLOPs, dense", "quotient", "FLOPs, as run", "quotient"]
    rows = [
        [
            c["critic"], c["dtype"], _spread(c["measured"]), f"{c['theory']:.2f}", f"{c['quotient']:.2f}",
            f"{c['theory_as_run']:.2f}", f"{c['quotient_as_run']:.2f}",
        ]
        for c in summary["ppo_to_grpo"]
    ]  # fmt: skip
    return _table(head, rows)


_CRITIC_NOTE = (
    "Dense: (8 N_a + 8 N_c) / 8 N_a with a critic of its own, (8 N_a + 2 N_c) / 8 N_a with a shared trunk, whose "
    "forward for the values is all that it adds. As run: the same with attention, a prompt once per group and logits "
    "at sampled tokens only."
)


def _curve(name: str, places: list[dict[str, Any]]) -> str:
    kind, _, rest = name.partition(", ")
    head = [
        CURVE_KINDS[kind],
        "prompts x G",
        "prompt + completion tokens",
        "s a step",
        "rollout",
        "update",
        "times the first",
    ]
    rows = [
        [
            f"{p['x']:,.0f}", f"{p['prompts']} x {p['group_size']}", f"{p['prompt_tokens']} + {p['tokens']}",
            _spread(p["seconds"]), f"{p['phases']['rollout']:.3g}",
            f"{p['phases']['update'] + p['phases']['score']:.3g}", f"{p['times_first']:.2f}",
        ]
        for p in places
    ]  # fmt: skip
    return f"Against {CURVE_KINDS[kind]} ({rest}):\n\n" + _table(head, rows)


def _name(contender: str) -> str:
    base, *options = contender.split("+")
    return ", ".join([NAMES.get(base, base), *options])


def _in(dtype: str) -> str:
    return f", {dtype}" if dtype else ""


def _spread(s: dict[str, Any]) -> str:
    return f"{s['median']:.3g}" if s["n"] == 1 else f"{s['median']:.3g} [{s['low']:.3g}, {s['high']:.3g}]"


def _table(head: list[str], rows: list[list[str]]) -> str:
    align = "| :--- |" + " ---: |" * (len(head) - 1)
    return "\n".join([f"| {' | '.join(head)} |", align, *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    sys.exit(main())
