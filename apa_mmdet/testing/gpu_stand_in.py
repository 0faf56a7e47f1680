"""Stand-ins for a GPU, to test the GPU code path without one.

While a stand-in is :func:`connected`, CPU tensors take the GPU code path, up to and
including the arguments of each launch.
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
    """Records launches as (variant, programs, arguments by name)."""

    def __init__(self) -> None:
        self.descriptions, self.variants, self.launches = [], {}, []

    def compile(self, description, key, compiled):
        """Record a variant that the operators ask for."""
        self.descriptions.append(description)
        self.variants[key] = gpu_variants.parse(description)

    def launch(self, key, programs, values, stream):
        """Record a launch and run it."""
        variant = self.variants[key]
        arguments = {
            name: gpu_variants.number(values[variant.names.index(name)], kind)
            for name, kind in variant.arguments.items()
        }
        self.launches.append((variant, programs, arguments))
        self.run(variant, programs, arguments)

    def run(self, variant, programs, arguments):
        """Do nothing; subclasses may run the kernel."""


class Interpreter(Recorder):
    """Runs the kernels in Triton's interpreter; needs ``TRITON_INTERPRET=1``."""

    def __init__(self) -> None:
        super().__init__()
        _patch_interpreter()

    def run(self, variant, programs, arguments):
        """Run the kernel on the tensors at the addresses in its arguments."""
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
def _patch_interpreter() -> None:
    """Make loops work in Triton's interpreter (3.6 and older) with numpy >= 2.4."""
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
    """Launch through a stand-in within a ``with`` block.

    Args:
        stand_in: Compiles and launches in place of Triton and the driver.
        programs: Number of programs assumed to fill the GPU; a small number makes each
            program process several tiles.
    """
    library = extension.load()
    gpu_variants.connect(library, stand_in, stand_in=True, programs=programs)
    try:
        yield stand_in
    finally:
        gpu_variants.connect(library, stand_in)
