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
        prior: Initial score of every class, in (0, 1); the bias is the logit for it at
            the loss's initial lam and kappa. By default the published bias of -2.
        init_cfg: As in mmdet's Shared2FCBBoxHead; if given, nothing is added to it.
        **kwargs: As in mmdet's Shared2FCBBoxHead.

    Raises:
        TypeError: If ``prior`` is given and ``loss_cls`` is not an APALoss.
        ValueError: If ``prior`` is not in (0, 1), or given with ``init_cfg``.
    """

    def __init__(
        self,
        *args,
        act_cfg: dict | None = None,
        prior: float | None = None,
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
            if not 0 < prior < 1:
                raise ValueError(f"prior={prior}, expected a probability in (0, 1)")
            if init_cfg is not None:
                raise ValueError(
                    f"prior={prior} and init_cfg both initialise the classifier; give "
                    f"one"
                )
        if is_apa and init_cfg is None:
            bias, fc_cls = _BIAS, dict(name="fc_cls")
            if prior is not None:
                lam, kappa = self.loss_cls.lambda_param, self.loss_cls.kappa_param
                score = torch.tensor(prior, dtype=torch.float64)
                bias = formula.logit(score, lam[0].double(), kappa[0]).item()
            constant = dict(type="Constant", val=_WEIGHT, bias=bias, override=fc_cls)
            self.init_cfg = [
                constant if cfg["override"] == fc_cls else cfg for cfg in self.init_cfg
            ]

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
