"""Hooks, launching, checkpoints, TTA, calibration and counting operations."""

from .checkpoint import read_checkpoint
from .class_frequency_hook import ClassFrequencyHook
from .setup_check_hook import SetupCheckHook

__all__ = ["ClassFrequencyHook", "SetupCheckHook", "read_checkpoint"]
