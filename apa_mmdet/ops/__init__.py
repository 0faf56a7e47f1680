"""The mathematics of APA: tensors in, tensors out. Needs torch alone."""

from .affine import affine_aglu
from .functional import aglu, apa, apa_cross_entropy, log_apa
from .implementation import use_implementation

__all__ = [
    "affine_aglu",
    "aglu",
    "apa",
    "apa_cross_entropy",
    "log_apa",
    "use_implementation",
]
