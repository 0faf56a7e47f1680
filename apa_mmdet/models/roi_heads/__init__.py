"""RoI heads: the APA classification head and the published predictors."""

from .apa_bbox_head import APABBoxHead
from .cosine_predictor import CosineConv2d
from .wrapped_cauchy_predictor import WrappedCauchyLinear

__all__ = ["APABBoxHead", "CosineConv2d", "WrappedCauchyLinear"]
