"""EQLv2 as a loss whose scores MMDetection's box heads use."""

from __future__ import annotations

from mmdet.models.losses import EQLV2Loss
from mmdet.registry import MODELS
from torch import Tensor, distributed

from .box_head_loss import BoxHeadLossMixin


@MODELS.register_module()
class EQLV2BoxLoss(BoxHeadLossMixin, EQLV2Loss):
    """MMDetection's EQLV2Loss, with sigmoid scores in any of its box heads.

    With EQLV2Loss itself, a box head takes the softmax of logits that were trained with
    sigmoids. The last of the C + 1 logits is background; a class's score is its sigmoid
    times the probability of foreground. In distributed training, the accumulated
    gradients are summed over all processes.

    Source: Equalization Loss v2, Tan et al., CVPR 2021, arXiv 2012.08548.

    Args:
        num_classes: Number of classes C, without background.
        **kwargs: As in mmdet's EQLV2Loss: ``gamma``, ``mu``, ``alpha``,
            ``loss_weight``, ``test_with_obj``.

    Raises:
        ValueError: If ``num_classes`` is not a positive integer.
    """

    has_background_logit = True

    def __init__(self, num_classes: int, **kwargs) -> None:
        self.check_num_classes(num_classes)
        super().__init__(num_classes=num_classes, **kwargs)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Return scores (N, C + 1) in float32; the last one is background."""
        return super().get_activation(cls_score.float())

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        *args,
        **kwargs,
    ) -> Tensor:
        """Return the loss, summed over classes and averaged over proposals.

        Args:
            cls_score: Logits (N, C + 1).
            labels: (N,), int64; C is background. Proposals with a negative label are
                ignored.
            weight: (N,); proposals with weight 0 are ignored, all others count equally.
            *args: Ignored, as in mmdet's EQLV2Loss.
            **kwargs: Ignored likewise.
        """
        used = labels >= 0
        if weight is not None:
            used &= weight > 0
        self.use_distributed = distributed.is_initialized()
        logits = cls_score[used].float()
        loss = super().forward(logits, labels[used])
        del self.pred_class_logits, self.gt_classes  # they keep the whole graph alive
        return loss if len(logits) else cls_score.sum() * 0  # instead of 0 / 0
