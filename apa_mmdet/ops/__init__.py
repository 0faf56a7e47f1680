"""The mathematics of APA: tensors in, tensors out. Needs only torch."""

from .activation import aglu, apa, log_apa, norm_aglu
from .cross_entropy import apa_cross_entropy
from .implementation import use_implementation

__all__ = [
    "aglu",
    "apa",
    "apa_cross_entropy",
    "log_apa",
    "norm_aglu",
    "use_implementation",
]
