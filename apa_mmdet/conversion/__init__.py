"""Any model with the learnable AGLU in the place of its fixed activations.

It needs torch alone. :class:`apa_mmdet.models.APADetector` is its use in a config.
"""

from .convert import convert_activations
from .report import ConversionReport, Left, Site
from .rewriting import ActivationSites

__all__ = [
    "ActivationSites",
    "ConversionReport",
    "Left",
    "Site",
    "convert_activations",
]
