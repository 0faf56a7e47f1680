"""Hooks, launching, checkpoints, TTA, calibration and counting operations."""

from .alignment_hook import AlignmentHook
from .checkpoint import read_checkpoint
from .class_frequency_hook import ClassFrequencyHook
from .setup_check_hook import SetupCheckHook

__all__ = [
    "AlignmentHook",
    "ClassFrequencyHook",
    "SetupCheckHook",
    "read_checkpoint",
]
