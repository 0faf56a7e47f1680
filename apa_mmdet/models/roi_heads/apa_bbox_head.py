"""The two-FC box head whose classifier starts at its own prior."""

from __future__ import annotations

import torch
from mmcv.cnn import build_activation_layer
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from torch import Tensor, nn

from ...ops import formula
from ..losses import APALoss

# Published start of the classifier (GOL): each Gumbel score begins at 0.0006.
_WEIGHT, _BIAS = 0.001, -2.0


@MODELS.register_module()
class APABBoxHead(Shared2FCBBoxHead):
    """Shared2FC box head for :class:`APALoss`.

    The classifier's weights start at 0.001 and its bias at the logit of a prior, so
    that the many negatives do not swamp the first iterations; the FCs keep mmdet's
    Xavier start, and ``fc_reg`` its normal one. Keys are those of Shared2FCBBoxHead,
    plus lambda and kappa.

    Args:
        *args: As in mmdet's Shared2FCBBoxHead.
        act_cfg: Activation after each FC, a module for each; by default ReLU.
        prior: Probability in (0, 1) at which every class starts; the bias is its
            inverse under the loss's starting lam and kappa. By default the published
            bias of -2.
        **kwargs: As in mmdet's Shared2FCBBoxHead. With ``init_cfg`` given, nothing is
            added to it.

    Raises:
        TypeError: If ``prior`` is given and ``loss_cls`` is not an APALoss.
        ValueError: If ``prior`` is not in (0, 1), or beside ``init_cfg``.
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
        adaptive = isinstance(self.loss_cls, APALoss)
        if prior is not None:
            self._check_prior(prior, adaptive, init_cfg)
        if adaptive and init_cfg is None:
            start = dict(
                type="Constant",
                val=_WEIGHT,
                bias=_BIAS if prior is None else self._logit(prior),
                override=dict(name="fc_cls"),
            )
            self.init_cfg = [
                start if cfg["override"] == dict(name="fc_cls") else cfg
                for cfg in self.init_cfg
            ]

    def _check_prior(self, prior: float, adaptive: bool, init_cfg: object) -> None:
        if not adaptive:
            raise TypeError(
                f"prior={prior} needs loss_cls of type 'APALoss' to be inverted, got "
                f"{type(self.loss_cls).__name__}; drop prior or change loss_cls"
            )
        if not 0 < prior < 1:
            raise ValueError(f"prior={prior}, expected a probability in (0, 1)")
        if init_cfg is not None:
            raise ValueError(
                f"prior={prior} and init_cfg both set the classifier's start; give one"
            )

    def _logit(self, prior: float) -> float:
        lam, kappa = self.loss_cls.lambda_param, self.loss_cls.kappa_param
        with torch.no_grad():
            value = formula.logit(
                torch.tensor(prior, dtype=torch.float64), lam[0].double(), kappa[0]
            )
        return float(value)

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
