"""RoI heads: the APA classification head and the cosine mask predictor."""

from .apa_bbox_head import APABBoxHead
from .cosine_predictor import CosineConv2d

__all__ = ["APABBoxHead", "CosineConv2d"]
