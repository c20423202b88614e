"""Compile the C files here with the machine's C compiler, once per machine; without one the program does without.

``python build.py`` does only that, and needs no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).resolve().parent
UNITS = (
    "sampling.c", "sampling_bfloat16.c", "decode_tiles.c", "attention.c", "layers.c", "products.c",
    "products_float32.c", "weight_gradient.c", "weight_gradient_float32.c", "optimiser.c", "play.c",
    "decoder_layer.c",
)  # fmt: skip
HEADERS = (
    "calls.h", "signatures.h", "vectors.h", "decode.h", "typed.h", "draw.h", "softmax.h", "elementwise.h", "norms.h",
    "norms_avx512.h", "turn.h", "panels.h", "tiles.h", "dots.h", "blocks.h", "packed_attention.h", "tiled_attention.h",
    "avx512.h", "bfloat16.h", "decoder_layer.h",
)  # fmt: skip
COMMON = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
# the first that the compiler takes: 512-bit vectors and threads, then without what some compilers or machines lack
TRIES = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
SECONDS = 180  # of one command


def compiler() -> str | None:
    """Path of the C compiler: ``CC``, else cc, gcc or clang; None where there is none."""
    return next(
        (found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None
    )


def cache_dir() -> Path:
    """Where compiled kernels are kept: grpo_bench/kernels under the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grpo_bench" / "kernels"


def load() -> tuple[ctypes.CDLL, str]:
    """The library, compiled first if this machine has not, and its name: of sources, compiler, processor and flags.

    torch must have been imported: the library then shares its OpenMP threads. Raises OSError or SubprocessError with
    the reason where there is no compiler, no place for the library, or no set of flags that works.
    """
    found = compiler()
    if found is None:
        raise OSError("no C compiler")
    key = _key(found)
    try:
        folder = cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        return _in(folder, key, found)
    except (OSError, RuntimeError):  # a home that cannot be written or run from, or none at all
        return _in(Path(tempfile.mkdtemp(prefix="grpo_bench-")), key, found)


def _in(folder: Path, key: str, found: str) -> tuple[ctypes.CDLL, str]:
    path = _made(folder, key, found)
    return ctypes.CDLL(str(path)), path.stem


def _made(folder: Path, key: str, found: str) -> Path:
    if (path := _known(folder, key)) is not None:
        return path
    with FileLock(folder / f".{key}.lock"):  # of processes that start together one compiles, with all the cores
        return _known(folder, key) or _compile(found, folder, key)


def _known(folder: Path, key: str) -> Path | None:
    paths = (folder / f"{key}-{number}.so" for number in range(len(TRIES)))
    return next((path for path in paths if path.is_file()), None)


def main() -> None:
    """Compile, if this machine has not; what is in the way shows when the library is loaded.

    SIGTERM, to the whole process group, ends it and what it left.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    found = compiler()
    with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):
        if found is not None:
            folder = cache_dir()
            folder.mkdir(parents=True, exist_ok=True)
            _made(folder, _key(found), found)


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


def _compile(found: str, folder: Path, key: str) -> Path:
    """Raises SubprocessError when no set of flags works or the compiler is killed, OSError where it cannot write."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        made, refused = Path(name) / "kernels.so", ""
        for number, flags in enumerate(TRIES):
            told = _built(found, flags, made)
            if told is None:
                path = folder / f"{key}-{number}.so"
                os.replace(made, path)  # at once: others may be compiling the same
                if number > (platform.machine() not in ("x86_64", "AMD64")):  # the first try's width is x86's alone
                    used = " ".join(flags) or "no flags for this machine"
                    print(f"kernels are compiled with {used}, and may be slower so: {refused}", file=sys.stderr)
                return path
            refused = refused or told.strip().partition("\n")[0]
        raise subprocess.SubprocessError(told.strip().partition("\n")[0] if told else "no flags to try")


def _built(found: str, flags: tuple[str, ...], made: Path) -> str | None:
    """Compile the units side by side and link them; None, or what the compiler said against these ``flags``."""
    objects = [made.with_name(f"{unit}.o") for unit in UNITS]
    commands = [
        [found, *COMMON, *flags, "-c", str(HERE / unit), "-o", str(into)]
        for unit, into in zip(UNITS, objects, strict=True)
    ]
    with ThreadPoolExecutor(len(UNITS)) as pool:
        done = list(pool.map(_run, commands))
    if all(one.returncode == 0 for one in done):
        done = [_run([found, *flags, "-shared", *map(str, objects), "-lm", "-o", str(made)])]
    failed = [one for one in done if one.returncode != 0]
    # worse flags would be kept for what was an accident
    if any(one.returncode < 0 or b"Killed" in one.stderr for one in failed):
        raise subprocess.SubprocessError(f"{found} was killed")
    return failed[0].stderr.decode(errors="replace") if failed else None


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)


if __name__ == "__main__":
    main()
