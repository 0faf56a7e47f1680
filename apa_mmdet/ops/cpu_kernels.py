"""The compiled kernels of ``cpu_kernels.cpp``: built once, called on dense tensors.

The first use compiles them with the system's C++ compiler, in seconds, and keeps the
library in ``$XDG_CACHE_HOME/apa_mmdet`` (``~/.cache/apa_mmdet``). Shapes play no part
in it. Without a compiler :func:`library` raises, and the caller takes another way.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-march=native"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
# Left out where the compiler does not know them.
_OPTIONAL_FLAGS = (("-fopenmp", "-mprefer-vector-width=512"), ("-fopenmp",), ())
# Below about a threshold like torch's own, a second thread costs more than it brings.
_GRAIN = 1 << 15
# ln(lam) must not dwarf kappa * x, or rounding t would spoil exp(t): beyond the largest
# lam plain torch goes on, and below the small one the kernels know another form, whose
# series hold for no larger one, with ``kIsSmall`` in the place of log2(lam).
_LARGEST_LAM, _SMALL_LAM, _IS_SMALL = 1e4, 1e-4, 1e9
_LB_E = math.log2(math.e)
NAMES = ("apa", "aglu")
DTYPES = (torch.float32, torch.bfloat16)
_PARAM_DTYPES = (*DTYPES, torch.float16)


# ``enum Form`` of the source: APA, AGLU, and AGLU of a sum of one or two terms.
_APA, _AGLU, _AFFINE, _RESIDUAL = range(4)


class _Call(ctypes.Structure):
    """``struct Call`` of the source."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "residual", "grad")),
        *((name, ctypes.c_void_p) for name in ("out", "grad_residual")),
        *((name, ctypes.c_void_p) for name in ("lb_lam", "inv_lam", "lb_kappa")),
        *((name, ctypes.c_void_p) for name in ("scale", "shift", "residual_scale")),
        ("sums", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "inner")),
        *((name, ctypes.c_int32) for name in ("channels_last", "form", "need_params")),
        *((name, ctypes.c_int32) for name in ("threads", "backward")),
    ]


def _cpu_name() -> str:
    """Return what tells processors apart: the library is compiled for this one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features")
    return "".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(compiler: str, path: Path) -> None:
    """Compile to ``path``; another process may be doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        for optional in _OPTIONAL_FLAGS:
            command = [compiler, *_FLAGS, *optional, str(_SOURCE), "-o", str(made)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode == 0:
                os.replace(made, path)
                return
    raise RuntimeError(
        f"{compiler} could not compile apa_mmdet's CPU kernels; it said:\n"
        f"{result.stderr[-2000:]}"
    )


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """Return the compiled kernels, compiling them if that has not been done.

    Raises:
        RuntimeError: If there is no C++ compiler, or it cannot compile them.
    """
    compiler = os.environ.get("CXX") or next(
        filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None
    )
    if compiler is None or shutil.which(compiler) is None:
        raise RuntimeError(
            f"no C++ compiler found (CXX={compiler!r}); install one (on Debian: apt "
            f"install g++) or set the environment variable CXX to yours"
        )
    key = repr((_SOURCE.read_bytes(), _FLAGS, _OPTIONAL_FLAGS, compiler, _cpu_name()))
    name = f"cpu_kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(cache) / "apa_mmdet" / name
    try:
        if not path.exists():
            _compile(compiler, path)
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(
            f"apa_mmdet's CPU kernels cannot be kept in {path.parent}: {error}; set "
            f"XDG_CACHE_HOME to a folder that can be written"
        ) from error
    for dtype in ("float32", "bfloat16"):
        function = getattr(loaded, f"apa_mmdet_{dtype}")
        function.argtypes, function.restype = [ctypes.POINTER(_Call)], None
    return loaded


def applies(x: Tensor, lam: Tensor, kappa: Tensor) -> bool:
    """Tell whether :func:`forward` and :func:`backward` can take these tensors."""
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and lam.dtype in _PARAM_DTYPES
        and kappa.dtype in _PARAM_DTYPES
        and _is_dense(x)
        and _in_range(lam)
        and _is_finite(kappa)
    )


def _in_range(lam: Tensor) -> bool:
    largest = lam if lam.numel() == 1 else lam.max()  # NaN, if there is one
    return largest.item() <= _LARGEST_LAM


def _is_finite(kappa: Tensor) -> bool:
    if kappa.numel() == 1:
        return math.isfinite(kappa.item())
    return bool(kappa.isfinite().all())


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or _is_channels_last(x)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


class _Prepared:
    """A call's layout, and its coefficients as float32 arrays."""

    def __init__(
        self, name, x, lam, kappa, axis, scale, shift, residual, residual_scale
    ):
        per_channel = lam.numel() > 1 or kappa.numel() > 1 or scale is not None
        self.call = call = _Call()
        if per_channel:
            call.channels = x.shape[axis]
            call.batch, call.inner = _around(x, axis)
            call.channels_last = int(
                call.inner > 1 and not x.is_contiguous() and _is_channels_last(x)
            )
            if call.inner == 1:  # channels are the last axis: pixels of one image
                call.batch, call.inner, call.channels_last = 1, call.batch, 1
        else:
            call.channels, call.batch, call.inner = 1, 1, x.numel()
        call.form = _APA if name == "apa" else _AGLU
        if scale is not None:
            call.form = _AFFINE if residual is None else _RESIDUAL
        self.shape = call.batch, call.channels
        if scale is not None and scale.dim() == 2 and call.batch == 1 != len(scale):
            # 1 x 1 maps of several images: as many images of one pixel.
            call.batch, call.inner = call.inner, 1
            self.shape = call.batch, call.channels
        if not per_channel:
            # Small tensors are dear where x is small as well.
            lam, kappa = max(lam.item(), 0.0), kappa.item()
            of_lam = (_IS_SMALL, lam) if lam < _SMALL_LAM else (math.log2(lam), 1 / lam)
            self.kept = (ctypes.c_float * 3)(*of_lam, kappa * _LB_E)
            start = ctypes.addressof(self.kept)
            call.lb_lam, call.inv_lam, call.lb_kappa = start, start + 4, start + 8
            return
        lam = lam.detach().float().clamp(min=0)
        lb_lam, inv_lam = lam.log2(), lam.reciprocal()
        is_small = lam < _SMALL_LAM
        if is_small.any():
            lb_lam = lb_lam.masked_fill(is_small, _IS_SMALL)
            inv_lam = torch.where(is_small, lam, inv_lam)
        small = dict(
            lb_lam=self._by_channel(lb_lam),
            inv_lam=self._by_channel(inv_lam),
            lb_kappa=self._by_channel(kappa.detach().float() * _LB_E),
        )
        if scale is not None:
            small["scale"], small["shift"] = map(self._by_image, (scale, shift))
        if residual is not None:
            ones = x.new_ones(1, dtype=torch.float32)
            given = ones if residual_scale is None else residual_scale
            small["residual_scale"] = self._by_channel(given)
        self.kept = small  # alive while the kernel runs
        for name, tensor in small.items():
            setattr(call, name, tensor.data_ptr())

    def _by_channel(self, small: Tensor) -> Tensor:
        return small.detach().float().expand(self.shape[1]).contiguous()

    def _by_image(self, small: Tensor) -> Tensor:
        return small.detach().float().expand(self.shape).contiguous()

    def run(self, x: Tensor, **pointers: Tensor | None) -> None:
        """Run the kernel of ``x``'s dtype on these tensors."""
        call = self.call
        call.x = x.data_ptr()
        for name, tensor in pointers.items():
            setattr(call, name, None if tensor is None else tensor.data_ptr())
        call.threads = min(torch.get_num_threads(), 1 + x.numel() // _GRAIN)
        if x.numel():
            name = str(x.dtype).removeprefix("torch.")
            getattr(library(), f"apa_mmdet_{name}")(ctypes.byref(call))


def _around(x: Tensor, axis: int) -> tuple[int, int]:
    """Return the number of elements before and after an axis."""
    before = after = 1
    for index, size in enumerate(x.shape):
        if index < axis:
            before *= size
        elif index > axis:
            after *= size
    return before, after


def _like(tensor: Tensor, x: Tensor) -> Tensor:
    """Return a tensor in the dtype and layout of ``x``; itself if it has them."""
    if tensor.dtype == x.dtype and tensor.stride() == x.stride():
        return tensor
    return torch.empty_like(x).copy_(tensor)


def forward(
    name: str,
    x: Tensor,
    lam: Tensor,
    kappa: Tensor,
    axis: int,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
) -> Tensor:
    """Return ``APA(x)`` or ``AGLU(scale * x + shift + residual_scale * residual)``.

    The result has the layout and dtype of ``x``.

    Args:
        name: ``'apa'``, which takes no scale, or ``'aglu'``.
        x: What :func:`applies` accepts.
        lam: Shape (1,) or (C,).
        kappa: Shape (1,) or (C,).
        axis: Axis of the channels.
        scale: Shape (C,) or (batch, C); None for AGLU of ``x`` itself.
        shift: The shape of ``scale``.
        residual: The shape of ``x``, or None.
        residual_scale: Shape (C,), or None for 1.
    """
    prepared = _Prepared(
        name, x, lam, kappa, axis, scale, shift, residual, residual_scale
    )
    out = torch.empty_like(x)
    residual = None if residual is None else _like(residual, x)
    prepared.run(x, out=out, residual=residual)
    return out


def backward(
    name: str,
    x: Tensor,
    lam: Tensor,
    kappa: Tensor,
    grad_output: Tensor,
    axis: int,
    need_params: bool,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the gradients of ``x`` and ``residual``, and sums for all others.

    The sums are float64 (5, batch, C) or, if there are no channels to tell apart,
    (5, 1, 1): the gradients of ``lam``, ``kappa``, ``shift``, ``scale`` and
    ``residual_scale``. Without ``need_params`` the first two hold nothing of use.

    Other arguments are those of :func:`forward`.
    """
    prepared = _Prepared(
        name, x, lam, kappa, axis, scale, shift, residual, residual_scale
    )
    grad_x = torch.empty_like(x)
    residual = None if residual is None else _like(residual, x)
    grad_residual = None if residual is None else torch.empty_like(x)
    sums = torch.zeros(5, *prepared.shape, dtype=torch.float64)
    prepared.call.backward, prepared.call.need_params = 1, int(need_params)
    prepared.run(
        x,
        out=grad_x,
        residual=residual,
        grad=_like(grad_output, x),
        grad_residual=grad_residual,
        sums=sums,
    )
    return grad_x, grad_residual, sums
