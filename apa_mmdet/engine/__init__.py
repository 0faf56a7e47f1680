"""The class-frequency hook, launching, checkpoints, TTA and counting operations."""

from .checkpoint import read_checkpoint
from .class_frequency_hook import ClassFrequencyHook

__all__ = ["ClassFrequencyHook", "read_checkpoint"]
