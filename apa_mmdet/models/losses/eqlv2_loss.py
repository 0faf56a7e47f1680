"""EQLv2 as a box head's loss, the way MMDetection asks such losses for scores."""

from __future__ import annotations

from mmdet.models.losses import EQLV2Loss, accuracy
from mmdet.registry import MODELS
from torch import Tensor, distributed


@MODELS.register_module()
class EQLV2BoxLoss(EQLV2Loss):
    """MMDetection's EQLV2Loss, with sigmoid scores in any of its box heads.

    Without this contract a box head takes the softmax of logits that were trained
    under sigmoids. The last of the C + 1 logits says background; a class's score is its
    sigmoid times the probability of foreground. The collected gradients are summed over
    processes whenever there are several.

    Source: Equalization Loss v2, Tan et al., CVPR 2021, arXiv 2012.08548.

    Args:
        num_classes: Number of classes C, background excluded.
        **kwargs: As in mmdet's EQLV2Loss: ``gamma``, ``mu``, ``alpha``,
            ``loss_weight``, ``test_with_obj``.

    Raises:
        ValueError: If ``num_classes`` is not a positive integer.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True

    def __init__(self, num_classes: int, **kwargs) -> None:
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes={num_classes!r}, expected an integer >= 1")
        super().__init__(num_classes=num_classes, **kwargs)

    def get_cls_channels(self, num_classes: int) -> int:
        """Return the number of logits for ``num_classes`` classes: one more.

        Raises:
            ValueError: If it is not the ``num_classes`` of this loss.
        """
        if num_classes != self.num_classes:
            raise ValueError(
                f"the box head has num_classes={num_classes} but its EQLV2BoxLoss has "
                f"num_classes={self.num_classes}; set both to the data set's number of "
                f"classes"
            )
        return num_classes + 1

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Return scores (N, C + 1) in float32, the background's last."""
        return super().get_activation(cls_score.float())

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return ``acc_classes``, the top-1 accuracy (%) on foreground proposals."""
        foreground = (labels >= 0) & (labels < self.num_classes)
        classes = cls_score[foreground, :-1]
        return {"acc_classes": accuracy(classes, labels[foreground])}

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        *args,
        **kwargs,
    ) -> Tensor:
        """Return the loss, a sum over classes averaged over proposals.

        Args:
            cls_score: Logits (N, C + 1).
            labels: (N,), int64; C is background. Proposals of negative label are left
                out.
            weight: (N,); proposals of weight 0 are left out, others count alike.
            *args: Ignored, as mmdet's EQLV2Loss does.
            **kwargs: Ignored likewise.
        """
        used = labels >= 0
        if weight is not None:
            used &= weight > 0
        self.use_distributed = distributed.is_initialized()
        logits = cls_score[used].float()
        loss = super().forward(logits, labels[used])
        del self.pred_class_logits, self.gt_classes  # they would keep the whole graph
        return loss if len(logits) else cls_score.sum() * 0  # and not 0 / 0
