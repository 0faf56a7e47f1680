"""APAResNet and APAResNeXt as MMPretrain's backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmpretrain.registry import MODELS

from ..models import backbones
from ..models.published_checkpoints import adapt_published_classifier


class _ClassifierBackbone:
    """Mixin with the defaults of MMPretrain's ResNet, and the authors' files."""

    def __init__(
        self,
        depth: int,
        out_indices: Sequence[int] = (3,),
        norm_eval: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            depth=depth, out_indices=out_indices, norm_eval=norm_eval, **kwargs
        )

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # ImageClassifier calls this for every checkpoint that it loads.
        adapt_published_classifier(state_dict, prefix, self)


@MODELS.register_module()
class APAResNet(_ClassifierBackbone, backbones.APAResNet):
    """:class:`apa_mmdet.models.APAResNet` with MMPretrain's defaults.

    ``out_indices`` is ``(3,)``, and norms train (``norm_eval=False``); all else,
    including every key, is the same, so that ``init_cfg=dict(type='Pretrained',
    checkpoint=..., prefix='backbone.')`` loads a classifier's checkpoint into a
    detector. A classifier with this backbone loads the authors' classification files,
    ``fc.*`` into ``head.fc.*``.
    """


@MODELS.register_module()
class APAResNeXt(_ClassifierBackbone, backbones.APAResNeXt):
    """:class:`apa_mmdet.models.APAResNeXt` as :class:`APAResNet` here."""
