"""Layers: APA and AGLU as activations, and attention gated by APA.

They are registered in MMEngine's root registry, which every scope can see. Where mmcv
is not installed, the activations alone can be imported.
"""

from importlib.util import find_spec

from .activation import AGLU, APA

__all__ = ["AGLU", "APA"]

if find_spec("mmcv") is not None:
    from mmengine.registry import MODELS

    from .attention import APACBAM, APASELayer

    MODELS.register_module(module=AGLU)
    MODELS.register_module(module=APA)
    __all__ += ["APACBAM", "APASELayer"]
