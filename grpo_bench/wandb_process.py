"""The process that talks to wandb, so that nothing wandb does (hang, hook, crash) happens in a run's own process.

It reads JSON lines from stdin: first what ``wandb.init`` is to be called with, then what to show. At the end of stdin
the run is finished, also when the other side was killed: then wandb's file is whole up to the last line received.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any, TextIO

from grpo_bench.metrics import COUNTERS

# every unit that a budget can be equal in is an axis to choose; the first is the one that charts open with
X_AXES = ("samples", "generated_tokens", "time/total_s", "updates", "flops")

_stderr: TextIO = sys.stderr


def main() -> None:
    """Serve one run; exit code 0 when wandb has everything, 1 after one line on stderr."""
    global _stderr
    # wandb's own service inherits stderr and may outlive everybody: a pipe from the run's must not stay open with it
    _stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        serve(sys.stdin)
    except BaseException as error:  # whatever it is, the record on disk goes on
        _warn(f"wandb failed ({type(error).__name__}: {_first_line(error)}); it is off for this run")
        os._exit(1)  # wandb's exit hooks would wait for the server once more
    os._exit(0)


def serve(lines: TextIO) -> None:
    """Show what ``lines`` say until they end or the run is finished."""
    import wandb

    order = json.loads(next(lines))
    run = _init(wandb, order)
    for axis in X_AXES:
        run.define_metric(axis)
    run.define_metric("*", step_metric=X_AXES[0])
    exit_code, axes = 1, {}
    for line in lines:
        match json.loads(line):
            case {"log": metrics}:
                axes = {k: v for k, v in metrics.items() if k in X_AXES or k in COUNTERS}
                run.log(metrics)  # the step is one of them: wandb's own drops rows out of order
            case {"completions": {"columns": columns, "rows": rows}}:
                run.log({**axes, "completions": wandb.Table(columns=columns, data=rows)})
            case {"finish": {"exit_code": code, "summary": summary}}:
                exit_code = code
                run.summary.update(summary)
                break
    threading.Thread(target=_watchdog, args=(order["finish_seconds"],), daemon=True).start()
    run.finish(exit_code=exit_code)
    wandb.teardown()  # only this writes the last block of an offline file


def _init(wandb: Any, order: dict[str, Any]) -> Any:
    # the system metrics are to be of the run, not of this process
    settings = wandb.Settings(
        init_timeout=order["init_seconds"],
        silent=True,
        console="off",
        x_stats_pid=order["pid"],
        program=order["program"],
    )
    arguments = order["init"] | {"settings": settings}
    wandb.setup(settings=wandb.Settings(silent=True))
    mode = mode_of(wandb, order["mode"])
    if mode != "online":
        return wandb.init(mode=mode, **arguments)  # offline there is nothing to continue: sync joins equal ids
    try:
        return wandb.init(mode=mode, resume="allow", **arguments)
    except Exception as error:
        _warn(f"wandb is offline for this run ({_first_line(error)}); wandb sync sends it later")
        wandb.teardown()
        return wandb.init(mode="offline", **arguments)


def mode_of(wandb: Any, asked: str) -> str:
    """What ``auto`` stands for: WANDB_MODE, else online with an account and offline without."""
    if asked != "auto":  # an argument wins over the variable
        return asked
    return os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")


def _watchdog(seconds: float) -> None:
    threading.Event().wait(seconds)
    _warn(f"wandb did not finish within {seconds:.0f} s; wandb sync sends the rest")
    os._exit(1)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=_stderr, flush=True)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
