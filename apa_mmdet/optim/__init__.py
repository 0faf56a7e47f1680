"""No weight decay for lambda and kappa, in any optimizer.

:func:`param_groups` needs only torch. The optimizer constructor for MMEngine's configs
needs mmengine and mmdet, so it is imported from :mod:`apa_mmdet.optim.constructor`.
"""

from .groups import param_groups

__all__ = ["param_groups"]
