"""The optimizer constructor that keeps weight decay off lambda and kappa."""

from .constructor import APAOptimWrapperConstructor, decay_advice

__all__ = ["APAOptimWrapperConstructor", "decay_advice"]
