"""The two-FC box head for APALoss, with a classifier that starts at a prior."""

from __future__ import annotations

import torch
from mmcv.cnn import build_activation_layer
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from torch import Tensor, nn

from ...ops import formula
from ..losses import APALoss

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
            if not is_apa:
                raise TypeError(
                    f"prior={prior} needs loss_cls of type 'APALoss', got "
                    f"{type(self.loss_cls).__name__}; drop prior or change loss_cls"
                )
            if prior != "frequency" and not (
                isinstance(prior, (int, float)) and 0 < prior < 1
            ):
                raise ValueError(
                    f"prior={prior}, expected a probability in (0, 1) or 'frequency'"
                )
            is_number = isinstance(foreground_share, (int, float))
            if not is_number or not 0 < foreground_share < 1:
                raise ValueError(
                    f"foreground_share={foreground_share}, expected a share in (0, 1)"
                )
            if getattr(self.fc_cls, "bias", None) is None:
                raise ValueError(
                    f"prior={prior} needs a classifier with a bias, and "
                    f"{type(self.fc_cls).__name__} has none; drop prior or "
                    f"cls_predictor_cfg"
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
            share = loss.class_frequency.double() / loss.class_frequency.sum()
            # A class without annotations starts below the rarest annotated one.
            share = share.clamp(min=0.5 * share[share > 0].min().item())
            prior = self.foreground_share * share
        prior = torch.as_tensor(prior, dtype=torch.float64)
        with torch.no_grad():
            lam = loss.lambda_param.double().clamp(min=0)
            self.fc_cls.bias.copy_(formula.logit(prior, lam, loss.kappa_param.double()))

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
