"""Layers: the APA and AGLU activations; attention gated by APA in ``.attention``.

The activations need only torch. The attention plugins need mmcv, so they are imported
from :mod:`apa_mmdet.layers.attention`.
"""

from .activation import AGLU, APA

__all__ = ["AGLU", "APA"]
