"""The interface through which MMDetection's box heads use a loss's own scores."""

from __future__ import annotations

from mmdet.models.losses import accuracy
from torch import Tensor


class BoxHeadLossMixin:
    """Mixin for losses that are ``loss_cls`` of any Shared2FC or ConvFC box head.

    The loss itself defines ``get_activation(cls_score)``, which returns scores
    (N, C + 1) with background last, and ``num_classes``, C. Its logits are (N, C), or
    (N, C + 1) with background last if it sets ``has_background_logit``.
    """

    custom_cls_channels = custom_activation = custom_accuracy = True
    has_background_logit = False
    use_sigmoid = True  # scores of classes are independent of one another

    @staticmethod
    def check_num_classes(num_classes: int) -> None:
        """Raise a ValueError if ``num_classes`` is not a positive integer."""
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes={num_classes!r}, expected an integer >= 1")

    def get_cls_channels(self, num_classes: int) -> int:
        """Return the number of logits; a ValueError if the head's classes differ."""
        if num_classes != self.num_classes:
            raise ValueError(
                f"the box head has num_classes={num_classes} but its "
                f"{type(self).__name__} has num_classes={self.num_classes}; set both "
                f"to the data set's number of classes"
            )
        return num_classes + self.has_background_logit

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return ``acc_classes``, the top-1 accuracy (%) on foreground proposals."""
        foreground = (labels >= 0) & (labels < self.num_classes)
        logits = cls_score[foreground, : self.num_classes]
        return {"acc_classes": accuracy(logits, labels[foreground])}
