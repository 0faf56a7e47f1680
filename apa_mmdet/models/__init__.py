"""Backbones, losses and heads, registered for MMDetection's configs."""

from .apa_detector import APADetector
from .backbones import APAResNet, APAResNeXt, EfficientNetLite
from .calibration import FRACAL, NORCAL, LogitAdjustment, PostCompensation
from .losses import APALoss, EQLV2BoxLoss
from .roi_heads import APABBoxHead, CosineConv2d, WrappedCauchyLinear

__all__ = [
    "FRACAL",
    "NORCAL",
    "APABBoxHead",
    "APADetector",
    "APALoss",
    "APAResNeXt",
    "APAResNet",
    "CosineConv2d",
    "EQLV2BoxLoss",
    "LogitAdjustment",
    "EfficientNetLite",
    "PostCompensation",
    "WrappedCauchyLinear",
]
