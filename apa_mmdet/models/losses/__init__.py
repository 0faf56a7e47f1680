"""Losses for long-tailed classification."""

from .apa_loss import APALoss

__all__ = ["APALoss"]
