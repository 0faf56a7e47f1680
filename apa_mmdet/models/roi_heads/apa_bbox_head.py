"""The two-FC box head for APALoss, with a classifier that starts at a prior."""

from __future__ import annotations

from mmcv.cnn import build_activation_layer
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..losses import APALoss
from ..losses.prior import check_prior, class_shares, set_prior

# GOL's initial classifier: every Gumbel score starts at 0.0006.
_WEIGHT, _BIAS = 0.001, -2.0


@MODELS.register_module()
class APABBoxHead(Shared2FCBBoxHead):
    """Shared2FC box head for :class:`APALoss`.

    The classifier's weights are initialised to 0.001 and its bias to the logit of a
    prior, so that the many negatives do not dominate the first iterations. The other
    layers are initialised as in mmdet: Xavier for the FCs, normal for ``fc_reg``. Keys
    are those of Shared2FCBBoxHead, plus lambda and kappa.

    Args:
        *args: As in mmdet's Shared2FCBBoxHead.
        act_cfg: Activation after each FC, a separate module for each; by default ReLU.
        prior: Initial score of every class, in (0, 1), or ``'frequency'``: the share
            of the proposals that will show the class, ``foreground_share`` times the
            class's share of the training data's ``class_frequency``. The bias is the
            logit for it at the loss's initial lam and kappa. By default the published
            bias of -2.
        foreground_share: Share of foreground among the proposals, in (0, 1); a quarter
            is the most that MMDetection samples by default.
        init_cfg: As in mmdet's Shared2FCBBoxHead; if given, nothing is added to it.
        **kwargs: As in mmdet's Shared2FCBBoxHead.

    Raises:
        TypeError: If ``prior`` is given and ``loss_cls`` is not an APALoss.
        ValueError: If ``prior`` is neither in (0, 1) nor ``'frequency'``, or given with
            ``init_cfg``, or ``foreground_share`` is not in (0, 1).
    """

    def __init__(
        self,
        *args,
        act_cfg: dict | None = None,
        prior: float | str | None = None,
        foreground_share: float = 0.25,
        init_cfg: dict | list | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, init_cfg=init_cfg, **kwargs)
        act_cfg = dict(type="ReLU", inplace=True) if act_cfg is None else act_cfg
        del self.relu
        self.shared_acts = nn.ModuleList(
            build_activation_layer(dict(act_cfg)) for _ in self.shared_fcs
        )
        is_apa = isinstance(self.loss_cls, APALoss)
        if prior is not None:
            check_prior(
                prior, self.loss_cls, self.fc_cls, "loss_cls", "cls_predictor_cfg"
            )
            is_number = isinstance(foreground_share, (int, float))
            if not is_number or not 0 < foreground_share < 1:
                raise ValueError(
                    f"foreground_share={foreground_share}, expected a share in (0, 1)"
                )
            if init_cfg is not None:
                raise ValueError(
                    f"prior={prior} and init_cfg both initialise the classifier; give "
                    f"one"
                )
        self.prior, self.foreground_share = prior, foreground_share
        if is_apa and init_cfg is None:
            fc_cls = dict(name="fc_cls")
            constant = dict(type="Constant", val=_WEIGHT, bias=_BIAS, override=fc_cls)
            self.init_cfg = [
                constant if cfg["override"] == fc_cls else cfg for cfg in self.init_cfg
            ]

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, then set the bias for the prior.

        Raises:
            RuntimeError: If the loss has no class frequencies and needs them.
        """
        super().init_weights()
        if self.prior is None:
            return
        loss, prior = self.loss_cls, self.prior
        if prior == "frequency":
            loss.require_frequency("prior='frequency'")
            prior = self.foreground_share * class_shares(loss.class_frequency)
        set_prior(self.fc_cls, loss, prior)

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return class logits (N, C) and box deltas of RoI features (N, C', H, W)."""
        if self.with_avg_pool:
            x = self.avg_pool(x)
        x = x.flatten(1)
        for fc, act in zip(self.shared_fcs, self.shared_acts):
            x = act(fc(x))
        cls_score = self.fc_cls(x) if self.with_cls else None
        bbox_pred = self.fc_reg(x) if self.with_reg else None
        return cls_score, bbox_pred
