"""Compile the C files here with the machine's C compiler, once per machine; without one the program does without."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
UNITS = ("kernels.c", "products.c")
HEADERS = ("typed.h",)
COMMON = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# the first that the compiler takes: 512-bit vectors and threads, then without what some compilers or machines lack
TRIES = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
SECONDS = 60  # of one try


def compiler() -> str | None:
    """Path of the C compiler: ``CC``, else cc, gcc or clang; None where there is none."""
    return next(
        (found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None
    )


def cache_dir() -> Path:
    """Where compiled kernels are kept: grpo_bench/kernels under the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grpo_bench" / "kernels"


def fingerprint() -> str | None:
    """Names sources, flags, compiler and processor."""
    found = compiler()
    return None if found is None else _key(found)


def load() -> ctypes.CDLL | None:
    """The compiled library, compiled first if this machine has not; None without a compiler or a place to keep it.

    torch must have been imported: the library then shares its OpenMP threads.
    """
    found = compiler()
    if found is None:
        return None
    name = f"{_key(found)}.so"
    try:
        path = cache_dir() / name
        if not path.is_file():
            _compile(found, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def _key(found: str) -> str:
    """Of the sources, the flags, the compiler and the processor that it compiles for."""
    digest = hashlib.sha256()
    for name in UNITS + HEADERS:
        digest.update((HERE / name).read_bytes())
    digest.update(
        repr((COMMON, TRIES, os.path.realpath(found), os.stat(found).st_mtime_ns, platform.machine())).encode()
    )
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _compile(found: str, path: Path) -> None:
    """Raises SubprocessError when no set of flags works, OSError where nothing can be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        for flags in TRIES:
            command = [found, *COMMON, *flags, *(str(HERE / unit) for unit in UNITS), "-lm", "-o", temporary]
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
            if done.returncode == 0:
                os.replace(temporary, path)  # at once: others may be compiling the same
                return
        raise subprocess.SubprocessError(done.stderr.decode(errors="replace"))
    finally:
        Path(temporary).unlink(missing_ok=True)
