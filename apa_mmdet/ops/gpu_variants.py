"""Compiles the Triton kernels for the C++ operators, one variant at a time.

When ``csrc/gpu_launch.cpp`` needs a variant for the first time, it describes it in a
line of text, ``kernel device=0 x=*bf16! ... inner=i32! NAME=value``: the type of each
argument (nothing if it is absent, ``!`` if it is aligned) and the kernel's constants
(``LOG_C=8`` stands for ``BLOCK_C=256``). In return it gets a function handle of the
CUDA driver and the order of the function's parameters, which is checked against the
compiled code. If the parameters are not as expected, or there is no CUDA driver (ROCm),
Python launches the variant.
"""

from __future__ import annotations

import ctypes
import re
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_KERNELS = {
    "forward_kernel": "triton_activation",
    "backward_kernel": "triton_activation",
    "reduce_kernel": "triton_activation",
    "statistics_kernel": "triton_activation",
    "loss_kernel": "triton_cross_entropy",
    "loss_backward_kernel": "triton_cross_entropy",
}
# The constants packed into FLAGS, one bit each.
_FLAGS = ("IS_APA", "HALF", "FLAT", "PIXELS", "SUM_RESIDUAL")
_PTX_TYPES = {"i32": "u32", "i64": "u64", "fp32": "f32"}
_MAX_ARGUMENTS = 32  # as in gpu_launch.h


def why_unavailable() -> str | None:
    """Return why the kernels are unavailable in this process, or None."""
    if not (torch.version.cuda or torch.version.hip):
        return "this torch is built for the CPU"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}); install torch's triton package"
    return None


@dataclass
class Variant:
    """A kernel with the types, alignments and constants it is compiled for."""

    kernel: Any  # a function under triton.jit
    device: int
    arguments: dict[str, str]  # those that are present: name to type
    aligned: tuple[str, ...]
    constants: dict[str, int]
    warps: int
    names: tuple[str, ...]  # all arguments, in the order of C++

    def source(self):
        """Return what Triton compiles."""
        from triton.compiler import ASTSource

        signature, constants = {}, {}
        for name in self.kernel.arg_names:
            signature[name] = self.arguments.get(name, "constexpr")
            if name not in self.arguments:
                constants[name] = self.constants.get(name)
        positions = {name: i for i, name in enumerate(self.kernel.arg_names)}
        attributes = {
            (positions[name],): [
                ["tt.divisibility", 16 if self.arguments[name].startswith("*") else 8]
            ]
            for name in self.aligned
        }
        return ASTSource(self.kernel, signature, constants, attributes)

    def compile(self, target=None):
        """Return the compiled kernel, for the current device or a given target."""
        import triton

        options = dict(num_warps=self.warps, enable_fp_fusion=True)
        return triton.compile(self.source(), target=target, options=options)

    def order(self, ptx: str) -> list[int]:
        """Return the index of each parameter among C++'s arguments, -1 for null.

        Raises:
            RuntimeError: If the parameters are not the arguments in order, followed by
                at most two pointers to scratch memory, which the kernels do not use.
        """
        head = re.search(r"\.entry\s+\w+\s*\((.*?)\)", ptx, re.S)
        parameters = re.findall(r"\.param\s+\.(\w+)", head[1]) if head else []
        given = [name for name in self.kernel.arg_names if name in self.arguments]
        wanted = [
            "u64"
            if self.arguments[name][0] == "*"
            else _PTX_TYPES[self.arguments[name]]
            for name in given
        ]
        extra = parameters[len(wanted) :]
        if (
            parameters[: len(wanted)] != wanted
            or len(extra) > 2
            or set(extra) - {"u64"}
        ):
            raise RuntimeError(
                f"{self.kernel.__name__} has parameters {parameters}, expected {wanted}"
            )
        return [self.names.index(name) for name in given] + [-1] * len(extra)


def parse(description: str) -> Variant:
    """Parse C++'s description of a variant."""
    name, device, *items = description.split()
    module = __import__(f"{__package__}.{_KERNELS[name]}", fromlist=[name])
    kernel = getattr(module, name)
    arguments, aligned, constants, names = {}, [], {}, []
    for item in items:
        key, value = item.rstrip("!").split("=")
        if key.isupper():
            constants[key] = int(value)
            continue
        names.append(key)
        if value:
            arguments[key] = value
        if item.endswith("!"):
            aligned.append(key)
    warps = constants.pop("WARPS")
    flags = constants.pop("FLAGS", None)
    if flags is not None:
        of_flags = {key: flags >> bit & 1 for bit, key in enumerate(_FLAGS)}
        constants |= {k: v for k, v in of_flags.items() if k in kernel.arg_names}
    for key in [key for key in constants if key.startswith("LOG_")]:
        constants["BLOCK_" + key[4:]] = 1 << constants.pop(key)
    return Variant(
        kernel, int(device.split("=")[1]), arguments, tuple(aligned), constants, warps,
        tuple(names),
    )  # fmt: skip


# ---- Called from C++
class _Compiled(ctypes.Structure):
    """The struct of the same name in gpu_launch.cpp."""

    _fields_ = [
        ("function", ctypes.c_void_p),
        ("warps", ctypes.c_int32),
        ("shared", ctypes.c_int32),
        ("num_parameters", ctypes.c_int32),
        ("order", ctypes.c_int32 * (_MAX_ARGUMENTS + 8)),
        ("error", ctypes.c_char * 1024),
    ]


_Compile = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_int64, ctypes.POINTER(_Compiled)
)
_Launch = ctypes.CFUNCTYPE(
    None,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.c_void_p,
    ctypes.c_void_p,
)


class Launcher:
    """Compiles variants, and launches those that C++ cannot launch."""

    def __init__(self, library: ctypes.CDLL, from_cpp: bool = True) -> None:
        library.apa_mmdet_has_driver.restype = ctypes.c_bool
        has_driver = library.apa_mmdet_has_driver() and not torch.version.hip
        self.from_cpp = from_cpp and has_driver
        self._lock = threading.Lock()
        self._launches = {}

    def compile(self, description: str, key: int, compiled: _Compiled) -> None:
        """Compile a variant and fill in how C++ launches it."""
        variant = parse(description)
        with self._lock, torch.cuda.device(variant.device):
            kernel = variant.compile()
            if self.from_cpp:
                try:
                    order = variant.order(kernel.asm["ptx"])
                    function = _load(kernel)
                except (AttributeError, KeyError, RuntimeError):
                    self.from_cpp = False  # an unknown version of Triton
                else:
                    compiled.function = function
                    compiled.warps = variant.warps
                    compiled.shared = kernel.metadata.shared
                    compiled.num_parameters = len(order)
                    compiled.order[: len(order)] = order
                    return
            self._launches[key] = _PythonLaunch(variant, kernel)

    def launch(self, key: int, programs: int, values, stream: int | None) -> None:
        """Launch a variant that C++ cannot launch."""
        self._launches[key](programs, values, stream)


def _load(kernel: Any) -> int:
    """Load a compiled kernel onto the current device and return its handle.

    Loading it through Triton would build a C launcher, which takes as long again as
    compiling the kernel.
    """
    cuda = ctypes.CDLL("libcuda.so.1")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    name = kernel.metadata.name.encode()
    status = cuda.cuModuleLoadData(ctypes.byref(module), kernel.asm["cubin"])
    status = status or cuda.cuModuleGetFunction(ctypes.byref(function), module, name)
    if status:
        raise RuntimeError(f"the CUDA driver cannot load a kernel: error {status}")
    return function.value


class _PythonLaunch:
    """Launches a compiled kernel through Triton, given the arguments' bits."""

    def __init__(self, variant: Variant, kernel: Any) -> None:
        self._kernel, self._device = kernel, variant.device
        self._pick = [
            (variant.names.index(name), variant.arguments[name])
            if name in variant.arguments
            else (None, variant.constants.get(name))
            for name in variant.kernel.arg_names
        ]

    def __call__(self, programs, values, stream) -> None:
        arguments = [
            kind if at is None else number(values[at], kind) for at, kind in self._pick
        ]
        if stream is None:
            stream = torch.cuda.current_stream(self._device).cuda_stream
        with torch.cuda.device(self._device):
            self._kernel[(programs, 1, 1)](*arguments, stream=stream)


def number(bits: int, kind: str) -> int | float:
    """Convert the 64 bits in which C++ stores an argument to its value."""
    if kind == "fp32":
        return struct.unpack("<fi", struct.pack("<Q", bits))[0]
    return bits


def connect(
    path: str | Path,
    launcher: Any = None,
    stand_in: bool = False,
    programs: int | None = None,
    from_cpp: bool = True,
) -> None:
    """Connect the C++ operators to what compiles and launches their kernels.

    Args:
        path: The library, which torch has already loaded.
        launcher: Object with the methods of :class:`Launcher`; by default a new one.
        stand_in: Whether CPU tensors take the GPU code path.
        programs: Number of programs assumed to fill the GPU; by default C++'s own.
        from_cpp: Whether to launch from C++ where that is possible.
    """
    library = ctypes.CDLL(str(path))
    launcher = launcher or Launcher(library, from_cpp)

    @_Compile
    def compile_(description, key, compiled):
        try:
            launcher.compile(description.decode(), key, compiled.contents)
        except BaseException as error:  # must not propagate into C
            compiled.contents.error = _message(error)

    @_Launch
    def launch(key, programs, values, stream, error):
        try:
            launcher.launch(key, programs, values, stream)
        except BaseException as raised:
            text = _message(raised)
            ctypes.memmove(error, text, len(text) + 1)

    _callbacks.append((compile_, launch, library))  # kept alive: C++ holds pointers
    library.apa_mmdet_connect(
        compile_, launch, ctypes.c_bool(stand_in), ctypes.c_int64(programs or 0)
    )


_callbacks: list[tuple] = []


def _message(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {error}".encode(errors="replace")[:1000] or b"?"
