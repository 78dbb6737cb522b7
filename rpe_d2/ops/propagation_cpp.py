"""The recurrence of spatial propagation in C++ on the CPU, for machines with a compiler.

``propagation.cpp`` needs no header of torch or Python, so it compiles in a few seconds. It is
compiled once per machine, at the first call, into ``$XDG_CACHE_HOME/rpe_d2`` (by default
``~/.cache/rpe_d2``), where a checksum is stored beside it. Without a compiler :func:`available`
returns False, and the slower torch implementation is used.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import List, Optional, Tuple

import torch

_SOURCE = Path(__file__).with_name("propagation.cpp")
_BUILD_SECONDS = 300
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")


@functools.lru_cache(maxsize=None)
def available() -> bool:
    """Returns whether the library can be loaded or built, and logs the reason once if it cannot."""
    try:
        library()
    except ValueError as error:
        logging.getLogger(__name__).info("Spatial propagation runs in plain torch: %s", error)
        return False
    return True


def forward(x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Propagates x (B, C, H, W) by gates (B, G, 4, K, H, W), both contiguous.

    Returns:
        The result (4, B, C, H, W), float64 like x or float32.
    """
    maps, weights = _precise(x), _precise(gates)
    directions = maps.new_empty(4, *x.shape)
    _call("forward", maps, weights, maps, weights, directions, None)
    return directions


def forward_maximum(x: torch.Tensor, gates: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Propagates as :func:`forward`, and merges the directions.

    Returns:
        The maximum (B, C, H, W) over the directions, and the directions (4, B, C, H, W).
    """
    maps, weights = _precise(x), _precise(gates)
    directions, merged = maps.new_empty(4, *x.shape), torch.empty_like(maps)
    _call("forward", maps, weights, maps, weights, directions, merged)
    return merged, directions


def backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    gates: torch.Tensor,
    directions: torch.Tensor,
    merged: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Computes the gradients of x and gates from the gradient of the result.

    Args:
        gradient: gradient of the directions or, if ``merged`` is given, of the maximum. The
            gradient of a maximum is divided between the directions that attain it.
        x, gates: arguments of :func:`forward`.
        directions, merged: results of :func:`forward` or :func:`forward_maximum`.
    """
    maps, weights = _precise(x), _precise(gates)
    grad_x = torch.empty_like(maps)
    grad_gates = torch.empty_like(weights) if x.numel() else torch.zeros_like(weights)
    incoming = _precise(gradient)
    _call(
        "backward", maps, weights, incoming, maps, weights, directions, merged, grad_x, grad_gates
    )
    return grad_x.to(x.dtype), grad_gates.to(gates.dtype)


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _call(
    name: str, x: torch.Tensor, gates: torch.Tensor, *tensors: Optional[torch.Tensor]
) -> None:
    """Calls the function for the sizes and dtype of x and gates, with null pointers for None."""
    batch, channels, height, width = x.shape
    dtype = "float64" if x.dtype == torch.float64 else "float32"
    function = getattr(library(), f"propagation_{name}_{dtype}_{gates.shape[3]}")
    sizes = (ctypes.c_int64 * 5)(batch, channels, gates.shape[1], height, width)
    pointers = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
    if not function(*pointers, sizes, ctypes.c_int64(torch.get_num_threads())):
        raise MemoryError(f"spatial propagation of x {tuple(x.shape)} needs more memory")


@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """Loads the functions of ``propagation.cpp``, and compiles them if necessary.

    Raises:
        ValueError: There is no compiler, it failed or timed out, or the cache cannot be used.
    """
    try:
        compiler = _compiler()
        path = _cache() / f"propagation-{_key(compiler)}.so"
        if not _is_whole(path):
            _build(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"its C++ form cannot be built or loaded: {_reason(error)}") from error


def _compiler() -> List[str]:
    named = os.environ.get("CXX", "").split()
    if named and shutil.which(named[0]) is None:
        raise FileNotFoundError(f"CXX is {' '.join(named)!r}; allowed: a C++17 compiler")
    if named:
        return named
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise FileNotFoundError("no C++ compiler: CXX is not set, and there is no g++, c++ or clang++")


def _cache() -> Path:
    """Returns a cache folder that no other user can write to, because code is loaded from it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not root.is_absolute():
        raise FileNotFoundError(f"no folder for a cache; XDG_CACHE_HOME is {root}; allowed: /…")
    folder = root / "rpe_d2"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise PermissionError(f"{folder} can be written to by others; allowed: by its owner alone")
    return folder


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    """Verifies the checksum, because loading a truncated library would crash the process."""
    if not path.is_file() or not _checksum(path).is_file():
        return False
    # As bytes, because a damaged file may be no text.
    return _checksum(path).read_bytes() == hashlib.sha256(path.read_bytes()).hexdigest().encode()


def _build(compiler: List[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        subprocess.run(
            [*compiler, *_FLAGS, str(_SOURCE), "-o", str(built)],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
        )
        if not built.exists():
            raise FileNotFoundError(f"{compiler[0]} wrote nothing; allowed: a C++17 compiler")
        _checksum(built).write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        # Atomic renames, because other processes may build the library at the same time.
        os.replace(built, path)
        os.replace(_checksum(built), _checksum(path))


def _reason(error: Exception) -> str:
    """Summarizes an error in one line; of a compiler's output, only the first error is used."""
    lines = (getattr(error, "stderr", None) or "").strip().splitlines()
    errors = [line for line in lines if "error" in line or "fatal" in line] or lines[-1:]
    return errors[0] if errors else str(error)


def _key(compiler: List[str]) -> str:
    """Hashes the source, the compiler and the CPU, because machines may share a home directory."""
    machine = " ".join([platform.machine(), platform.processor(), *platform.libc_ver()])
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        machine += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = [_SOURCE.read_text(encoding="utf-8"), *compiler, *_FLAGS, machine]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
