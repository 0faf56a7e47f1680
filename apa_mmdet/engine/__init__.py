"""Hooks."""

from .class_frequency_hook import ClassFrequencyHook

__all__ = ["ClassFrequencyHook"]
