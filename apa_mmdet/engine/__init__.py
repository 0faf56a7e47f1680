"""Hooks, the optimizer constructor and operation counts."""

from . import flops
from .class_frequency_hook import ClassFrequencyHook
from .optim_constructor import APAOptimWrapperConstructor, decay_advice

__all__ = ["APAOptimWrapperConstructor", "ClassFrequencyHook", "decay_advice"]

flops.register()
