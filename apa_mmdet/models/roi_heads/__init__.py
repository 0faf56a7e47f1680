"""RoI heads: the APA box head, and the predictors of the published models."""

from .apa_bbox_head import APABBoxHead
from .predictors import CosineConv2d, WrappedCauchyLinear

__all__ = ["APABBoxHead", "CosineConv2d", "WrappedCauchyLinear"]
