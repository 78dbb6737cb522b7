"""The recurrence of spatial propagation in C++ on the CPU, where there is a compiler.

``propagation.cpp`` needs no header of torch or Python, so it takes a few seconds to build, once a machine: at the first
call, into ``~/.cache/rpe_d2`` (or that of ``XDG_CACHE_HOME``). Without a compiler nothing is lost but speed:
:func:`available` says so, and the plain torch form is used.
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
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")


@functools.lru_cache(maxsize=None)
def available() -> bool:
    """Whether the library is there or can be built; why not is logged once."""
    try:
        library()
    except ValueError as error:
        logging.getLogger(__name__).info("Spatial propagation runs in plain torch: %s", error)
        return False
    return True


def forward(
    x: torch.Tensor, gates: torch.Tensor, merge: bool = False
) -> Tuple[torch.Tensor, Tuple[torch.Tensor, ...]]:
    """(4, B, C, H, W) from x (B, C, H, W) and gates (B, G, 4, K, H, W), both contiguous; and that for backward.

    With ``merge`` the directions' maximum (B, C, H, W) instead.
    """
    maps, weights = _precise(x), _precise(gates)
    found = maps.new_empty(4, *x.shape)
    merged = torch.empty_like(maps) if merge else None
    _call("forward", maps, weights, maps, weights, found, merged)
    saved = (found, merged) if merge else (found,)
    return saved[-1].to(x.dtype), saved


def backward(
    gradient: torch.Tensor, x: torch.Tensor, gates: torch.Tensor, saved: Tuple[torch.Tensor, ...]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Gradients like x and gates, from that of what :func:`forward` returned.

    That of a maximum is shared by the directions that reach it.
    """
    maps, weights = _precise(x), _precise(gates)
    found, merged = saved if len(saved) == 2 else (*saved, None)
    of_x, of_gates = torch.empty_like(maps), torch.empty_like(weights)
    incoming = _precise(gradient)
    _call("backward", maps, weights, incoming, maps, weights, found, merged, of_x, of_gates)
    return of_x.to(x.dtype), of_gates.to(gates.dtype)


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _call(
    name: str, x: torch.Tensor, gates: torch.Tensor, *tensors: Optional[torch.Tensor]
) -> None:
    """Calls a function for the sizes and dtype of x and gates with pointers to tensors, null for None."""
    batch, channels, height, width = x.shape
    dtype = "float64" if x.dtype == torch.float64 else "float32"
    function = getattr(library(), f"propagation_{name}_{dtype}_{gates.shape[3]}")
    sizes = (ctypes.c_int64 * 5)(batch, channels, gates.shape[1], height, width)
    pointers = [ctypes.c_void_p(None if one is None else one.data_ptr()) for one in tensors]
    function(*pointers, sizes, ctypes.c_int64(torch.get_num_threads()))


@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """The functions of ``propagation.cpp``, built before if need be.

    Raises:
        ValueError: there is no compiler, it failed, or the folder cannot be written.
    """
    try:
        compiler = _compiler()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        path = cache / "rpe_d2" / f"propagation-{_key(compiler)}.so"
        if not path.exists():
            _build(compiler, path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        words = error.stderr.strip().splitlines() or ["no word of why"]
        raise ValueError(f"its C++ form cannot be built by {compiler[0]}: {words[0]}") from error
    except OSError as error:
        raise ValueError(f"its C++ form cannot be built: {error}") from error


def _build(compiler: List[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(built, path)  # whole or not at all: other processes may build it, too


def _compiler() -> List[str]:
    named = os.environ.get("CXX", "").split()
    if named:
        return named
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise FileNotFoundError("no C++ compiler: neither CXX nor g++, c++, clang++")


def _key(compiler: List[str]) -> str:
    """Of the source, the compiler and the processor it compiles for: homes are shared by machines that differ."""
    processor = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = [_SOURCE.read_text(encoding="utf-8"), *compiler, *_FLAGS, processor]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
