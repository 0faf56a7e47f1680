"""APA and AGLU activations, gates and classification heads for MMDetection 3.x.

Importing this package registers everything in it, so a config needs one line::

    custom_imports = dict(imports=['apa_mmdet'], allow_failed_imports=False)

If mmengine is installed, the import first checks that torch, mmcv and mmdet are
installed and fit together, and then applies the repairs of :mod:`apa_mmdet.compat`.
Without mmengine it does neither: :mod:`apa_mmdet.ops`, :mod:`apa_mmdet.layers` and
:mod:`apa_mmdet.conversion` then need only torch, and :mod:`apa_mmdet.evaluation` only
numpy.
"""

from __future__ import annotations

from importlib import import_module

from .requirements import check_requirements, is_installed
from .version import __version__

__all__ = ["__version__"]


def _install() -> None:
    from mmengine.registry import MODELS

    from . import compat
    from .layers import AGLU, APA

    compat.apply()
    # mmengine's root registry is visible from every scope.
    for layer in (AGLU, APA):
        MODELS.register_module(module=layer)
    # These register what they define when they are imported.
    for room in ("layers.attention", "models", "engine", "evaluation.lvis_metric"):
        import_module(f"{__name__}.{room}")


if is_installed("mmengine"):
    check_requirements()
    _install()
