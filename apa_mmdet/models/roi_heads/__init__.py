"""RoI heads: the APA box head, and the predictors of the published models."""

from .apa_bbox_head import APABBoxHead
from .cosine_predictor import CosineConv2d
from .wrapped_cauchy_predictor import WrappedCauchyLinear

__all__ = ["APABBoxHead", "CosineConv2d", "WrappedCauchyLinear"]
