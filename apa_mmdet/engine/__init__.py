"""Hooks, the optimizer constructor, operation counts and reading checkpoints."""

from . import flops
from .checkpoint import read_checkpoint
from .class_frequency_hook import ClassFrequencyHook
from .optim_constructor import APAOptimWrapperConstructor, decay_advice

__all__ = [
    "APAOptimWrapperConstructor",
    "ClassFrequencyHook",
    "decay_advice",
    "read_checkpoint",
]

flops.register()
