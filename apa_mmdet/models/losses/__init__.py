"""Losses for long-tailed classification."""

from .apa_loss import APALoss
from .eqlv2_loss import EQLV2BoxLoss

__all__ = ["APALoss", "EQLV2BoxLoss"]
