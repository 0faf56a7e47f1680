"""The mathematics of APA: tensors in, tensors out. Needs torch alone."""

from .functional import aglu, apa, apa_cross_entropy, log_apa

__all__ = ["aglu", "apa", "apa_cross_entropy", "log_apa"]
