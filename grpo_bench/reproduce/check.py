"""What differs between where a run was made and here, and whether it can change its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_bench.records import Run
from grpo_bench.tasks.grader import LIBRARIES

# what a version of them computes enters a result; the other packages of a record read files or show them
COMPUTING = ("torch", "transformers", "tokenizers", "numpy", "peft")
READING = ("safetensors", "datasets", "hydra-core", "omegaconf", "pydantic")  # its outcome is in a fingerprint
GRADING = LIBRARIES["math"]  # only of answers that are expressions


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as recorded; ``changes`` says whether it can change the result, ``why`` how."""

    what: str
    recorded: str
    here: str
    changes: bool
    why: str

    def __str__(self) -> str:
        effect = "can change results" if self.changes else "changes no result"
        return f"{self.what}: recorded {self.recorded}, here {self.here}; {effect}: {self.why}"


LAST_BITS = "sums are rounded in another order, and sampling turns last bits into other tokens"


def surroundings(run: Run, here: Mapping[str, Any], threads: int | None, changed: list[str] | None) -> list[Difference]:
    """Machine, versions and code of ``run`` against an entry of provenance made here.

    ``threads``: what the run would compute with here. ``changed``: files under grpo_bench/ and conf/ that differ
    between the recorded commit and the working tree, None where git cannot tell.
    """
    then = run.provenance
    packages, device = then.get("packages") or {}, then.get("device") or {}
    have = here.get("packages") or {}
    grades = ((run.config.get("task") or {}).get("answer")) == "math"
    found = []

    def note(what: str, before: Any, now: Any, changes: bool, why: str) -> None:
        if before is not None and before != now:
            found.append(Difference(what, _shown(before), _shown(now), changes, why))

    note("processor", then.get("cpu"), here.get("cpu"), True, LAST_BITS)
    note("GPUs", device.get("gpus"), (here.get("device") or {}).get("gpus"), True, LAST_BITS)
    note("CUDA", device.get("cuda"), (here.get("device") or {}).get("cuda"), True, LAST_BITS)
    note("threads", device.get("torch_threads"), threads, True, LAST_BITS)
    before, now = ((one.get("device") or {}).get("kernels") or "torch's operations" for one in (then, here))
    note("sampling kernels", before, now, True, LAST_BITS)
    note("CPU count", then.get("cpu_count"), here.get("cpu_count"), False, "the thread count is what counts")
    note("platform", then.get("platform"), here.get("platform"), False, "the kernel computes nothing")
    note("Python", then.get("python"), here.get("python"), _minor(then.get("python")) != _minor(here.get("python")),
         "another minor version may compute mathematical functions by another library" if _minor(then.get("python"))
         != _minor(here.get("python")) else "patch releases keep what the code means")  # fmt: skip
    for name, version in packages.items():
        if name in COMPUTING:
            note(name, version, have.get(name), True, "another release may compute in another order, or otherwise")
        elif name in GRADING:
            why = "it decides which answers are equal" if grades else "this task compares numbers without it"
            note(name, version, have.get(name), grades, why)
        elif name in READING:
            note(name, version, have.get(name), False, "what it reads is compared by fingerprint and configuration")
        else:
            note(name, version, have.get(name), False, "it takes no part in a result")
    return found + _code(then.get("git") or {}, here.get("git") or {}, changed)


def _code(then: Mapping[str, Any], here: Mapping[str, Any], changed: list[str] | None) -> list[Difference]:
    sha, now = str(then.get("sha", "unknown")), str(here.get("sha", "unknown"))
    found = []
    if then.get("dirty"):
        recorded = f"{sha[:12]} with changes (diff {str(then.get('diff_sha256'))[:12]})"
        same = sha == now and here.get("dirty") and then.get("diff_sha256") == here.get("diff_sha256")
        if not same:
            why = "the record was made with uncommitted code, kept in its provenance.json"
            found.append(Difference("code", recorded, _commit(here), True, why))
        return found
    if sha == now and not here.get("dirty"):
        return found
    if changed is None:
        why = "git does not know the recorded commit, so what changed since is not known"
    elif not changed:
        return [Difference("commit", sha[:12], _commit(here), False, "no file of grpo_bench/ or conf/ differs")]
    else:
        why = f"{len(changed)} files of grpo_bench/ and conf/ differ, such as {', '.join(changed[:3])}"
    return [Difference("commit", sha[:12], _commit(here), True, why)]


def prints(run: Run, here: Mapping[str, str], config_hash: str) -> list[Difference]:
    """Data, model and configuration of ``run`` against what was read here (``probe``)."""
    if "error" in here:
        return [Difference("data or model", "read", "not readable", True, here["error"])]
    recorded = run.provenance.get("fingerprints") or {}
    pairs = [
        ("data", recorded.get("data"), here.get("data"), "these are other problems, or another version of them"),
        ("grader", recorded.get("grader"), here.get("grader"), "answers are extracted or compared by other code"),
        ("model", recorded.get("model"), here.get("model"), "training begins from other weights"),
        ("prompt stream", run.provenance.get("prompt_stream_hash"), here.get("prompt_stream_hash"),
         "problems come in another order"),
        ("configuration", run.config_hash or None, config_hash,
         "this version reads it otherwise, or what stands behind its paths is another content"),
    ]  # fmt: skip
    return [Difference(what, str(a), str(b), True, why) for what, a, b, why in pairs if a is not None and a != b]


def _commit(here: Mapping[str, Any]) -> str:
    return str(here.get("sha", "unknown"))[:12] + (" with changes" if here.get("dirty") else "")


def _minor(version: Any) -> str:
    return ".".join(str(version).split(".")[:2])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "absent" if value is None else str(value)
