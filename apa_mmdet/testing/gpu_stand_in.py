"""Stand-ins for a GPU: launches of the C++ operators that Python carries out.

A stand-in is connected with :func:`connected`; tensors of the CPU then take the path of
a GPU, up to and with the arguments of each launch.
"""

import contextlib
import ctypes
import functools
from collections.abc import Iterator

import torch

from ..ops import extension, gpu_variants

_DTYPES = {
    "*fp32": torch.float32,
    "*bf16": torch.bfloat16,
    "*fp16": torch.float16,
    "*i64": torch.int64,
    "*i1": torch.bool,
}


class Recorder:
    """Keeps what is launched: (variant, programs, arguments by name)."""

    def __init__(self) -> None:
        self.descriptions, self.variants, self.launches = [], {}, []

    def compile(self, description, key, compiled):
        """Take note of a variant."""
        self.descriptions.append(description)
        self.variants[key] = gpu_variants.parse(description)

    def launch(self, key, programs, values, stream):
        """Take note of a launch, and carry it out."""
        variant = self.variants[key]
        arguments = {
            name: gpu_variants.number(values[variant.names.index(name)], kind)
            for name, kind in variant.arguments.items()
        }
        self.launches.append((variant, programs, arguments))
        self.run(variant, programs, arguments)

    def run(self, variant, programs, arguments):
        """Do nothing: only the arguments are looked at."""


class Interpreter(Recorder):
    """Lets Triton's interpreter run the kernels; needs ``TRITON_INTERPRET=1``."""

    def __init__(self) -> None:
        super().__init__()
        _mend_interpreter()

    def run(self, variant, programs, arguments):
        """Interpret the kernel, on the memory that the arguments point to."""
        given = {
            name: _at(arguments[name], _DTYPES[kind]) if kind[0] == "*" else
            arguments[name]
            for name, kind in variant.arguments.items()
        }  # fmt: skip
        for name in variant.aligned:
            unit = 16 if variant.arguments[name][0] == "*" else 8
            assert arguments[name] % unit == 0, name
        rest = {
            name: variant.constants.get(name)
            for name in variant.kernel.arg_names
            if name not in given
        }
        variant.kernel[(programs,)](**given, **rest)


@functools.cache
def _mend_interpreter() -> None:
    """Let Triton's interpreter count loops under numpy >= 2.4 (Triton <= 3.6)."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_mend


def _at(address: int, dtype: torch.dtype) -> torch.Tensor:
    memory = (ctypes.c_char * dtype.itemsize).from_address(address)
    return torch.frombuffer(memory, dtype=dtype, count=1)


@contextlib.contextmanager
def connected(stand_in: Recorder, programs: int | None = None) -> Iterator[Recorder]:
    """Let the C++ operators use a stand-in.

    Args:
        stand_in: What compiles and launches.
        programs: How many are taken to fill the GPU, in place of thousands: with few,
            a program gets several tiles.
    """
    library = extension.load()
    gpu_variants.connect(library, stand_in, stand_in=True, programs=programs)
    try:
        yield stand_in
    finally:
        gpu_variants.connect(library, stand_in)
