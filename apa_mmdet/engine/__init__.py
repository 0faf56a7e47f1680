"""The hooks, launching, reading checkpoints and counting operations."""

from .alignment_hook import AlignmentHook
from .checkpoint import read_checkpoint
from .class_frequency_hook import ClassFrequencyHook

__all__ = ["AlignmentHook", "ClassFrequencyHook", "read_checkpoint"]
