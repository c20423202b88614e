"""What this machine, its software and its data are, asked in a process of its own since the answer needs torch.

``python -m grpo_bench.reproduce.probe`` reads a list of configurations from stdin and writes one JSON object to stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from grpo_bench.types import UserError


def probe(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """``here``: an entry of provenance.json made now; ``prints``: for each configuration its fingerprints ``data``,
    ``grader``, ``model`` and ``prompt_stream_hash``, or ``error``, one line. UserError when the process fails."""
    done = subprocess.run(
        [sys.executable, "-m", "grpo_bench.reproduce.probe"], input=json.dumps(configs), capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"this machine could not be asked what it is: {last}")
    return dict(json.loads(done.stdout))


def main() -> None:
    """Answer on stdout what stdin asks."""
    configs = json.load(sys.stdin)
    import torch  # noqa: F401  (provenance asks it only where it is loaded)

    from grpo_bench import provenance

    answer = {"here": provenance.collect({}, 1, None), "prints": [_prints(data) for data in configs]}
    json.dump(answer, sys.stdout)


def _prints(data: dict[str, Any]) -> dict[str, str]:
    from grpo_bench.config import parse
    from grpo_bench.policy import choose_device, load_model, load_tokenizer
    from grpo_bench.tasks import load_task
    from grpo_bench.tasks.grader import grader
    from grpo_bench.warmstart import model_fingerprint

    try:
        cfg = parse(data)
        task = load_task(cfg.task, cfg.seed)
        try:
            task.fit(load_tokenizer(cfg.model))  # what is too long for a prompt is no part of the stream
            model = model_fingerprint(load_model(cfg.model, choose_device(cfg)))
            prints = {"data": task.fingerprint, "grader": grader(cfg.task.answer), "model": model}
            return prints | {"prompt_stream_hash": task.prompt_stream_hash}
        finally:
            task.close()
    except UserError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    main()
