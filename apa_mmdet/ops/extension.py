"""Builds and loads the C++ extension that holds the native operators.

The system's C++ compiler compiles ``csrc/*.cpp`` at first use, against the headers that
torch ships. The library is kept in ``$XDG_CACHE_HOME/apa_mmdet``, by default
``~/.cache/apa_mmdet``, under a name made of everything it depends on: the sources, the
flags, torch, the compiler and the processor. Processes that start together build it
once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_SOURCES = Path(__file__).with_name("csrc")
_TORCH = Path(torch.__file__).parent
_INCLUDES = (_TORCH / "include", _TORCH / "include/torch/csrc/api/include")
_FLAGS = (
    *("-O2", "-fPIC", "-w"),
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
)
_KERNEL_FLAGS = (
    *("-O3", "-march=native", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
# The first of each that the compiler accepts is used.
_STANDARDS = ("-std=c++20", "-std=c++2a", "-std=c++17")
_KERNEL_EXTRAS = (("-fopenmp", "-mprefer-vector-width=512"), ("-fopenmp",), ())
# OpenMP is that of torch, whose threads are then shared: libgomp is not linked.
_LINK_FLAGS = ("-shared", f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10")

_loaded: Path | None = None
_error: RuntimeError | None = None


def load() -> Path:
    """Load the extension and return its path, building it first if that is needed.

    Raises:
        RuntimeError: If there is no C++ compiler, the build fails, or its result cannot
            be stored; the same each time it is called.
    """
    global _loaded, _error
    if _loaded is not None:
        return _loaded
    if _error is None:
        try:
            library = _built()
        except RuntimeError as error:
            _error = error
        except OSError as error:
            _error = RuntimeError(
                f"apa_mmdet's operators cannot be stored in {_cache()}: {error}; set "
                f"XDG_CACHE_HOME to a writable folder"
            )
        else:
            try:
                torch.ops.load_library(str(library))
                _loaded = library
                return library
            except OSError as error:
                _error = RuntimeError(
                    f"apa_mmdet's operators cannot be loaded: {error}; set CXX to a "
                    f"compiler whose C++ library is not newer than torch's"
                )
    raise _error


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "apa_mmdet"


def _built() -> Path:
    """Return the library's path; build it unless it is there."""
    compiler = _compiler()
    sources = sorted(_SOURCES.glob("*.cpp"))
    library = _cache() / f"operators-{_key(compiler)}.so"
    if library.exists():
        return library
    start_time = time.time()
    library.parent.mkdir(parents=True, exist_ok=True)
    failure = library.with_suffix(".failed")
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return library
        if failure.exists() and failure.stat().st_mtime >= start_time:
            raise RuntimeError(failure.read_text())  # another process has just tried
        print(
            f"apa_mmdet: building its C++ operators in {library.parent}; this takes "
            f"about a minute, once",
            file=sys.stderr,
            flush=True,
        )
        try:
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                _build(compiler, sources, Path(folder), library)
        except RuntimeError as error:
            failure.write_text(str(error))
            raise
        failure.unlink(missing_ok=True)
    return library


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in (named,) if named else ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise RuntimeError(
        f"no C++ compiler found (CXX={named!r}); install one (on Debian: apt install "
        f"g++) or set the environment variable CXX to yours"
    )


def _key(compiler: str) -> str:
    """Return a hash of everything that the library depends on."""
    binary = Path(compiler).resolve()
    parts = [
        *(
            path.name.encode() + path.read_bytes()
            for path in sorted(_SOURCES.iterdir())
        ),
        (_FLAGS, _KERNEL_FLAGS, _STANDARDS, _KERNEL_EXTRAS, _LINK_FLAGS),
        (torch.__version__, str(binary), binary.stat().st_size, binary.stat().st_mtime),
        (_loaded_libstdcxx(), _processor()),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Return what distinguishes processors: the kernels are compiled for this one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features")
    return "".join(sorted({line for line in lines if line.startswith(wanted)}))


def _run(*command: str) -> str | None:
    """Run a command; return its error output if it failed, otherwise None."""
    result = subprocess.run(command, capture_output=True, text=True)
    return None if result.returncode == 0 else result.stderr or "(nothing)"


def _build(compiler: str, sources: list[Path], folder: Path, library: Path) -> None:
    standard = next(
        (
            flag
            for flag in _STANDARDS
            if not _run(compiler, flag, "-x", "c++", "-fsyntax-only", os.devnull)
        ),
        _STANDARDS[0],
    )
    includes = [f"-isystem{path}" for path in _INCLUDES]

    def compiled(source: Path) -> str:
        object_file = str(folder / source.with_suffix(".o").name)
        is_kernel = source.name.startswith("cpu_")
        for extra in _KERNEL_EXTRAS if is_kernel else ((),):
            flags = (*_FLAGS, *(_KERNEL_FLAGS if is_kernel else ()), *extra)
            command = (compiler, standard, *flags, *includes, "-c", str(source))
            output = _run(*command, "-o", object_file)
            if output is None:
                return object_file
        raise RuntimeError(
            f"{compiler} could not compile apa_mmdet's {source.name}; compiler "
            f"output:\n{output[-2000:]}"
        )

    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        objects = list(pool.map(compiled, sources))
    linked = folder / library.name
    output = _run(
        compiler, *objects, *_loaded_libstdcxx(), *_LINK_FLAGS, "-o", str(linked)
    )
    if output is not None:
        raise RuntimeError(
            f"{compiler} could not link apa_mmdet's operators; compiler output:\n"
            f"{output[-2000:]}"
        )
    os.replace(linked, library)


def _loaded_libstdcxx() -> list[str]:
    """Return the path of this process's libstdc++, to be linked before any other.

    Some compilers link their own statically; a process with two copies of its streams
    crashes.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    return sorted({line.split()[-1] for line in lines if "libstdc++.so" in line})[:1]
