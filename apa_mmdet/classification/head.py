"""The head for long-tailed classification: its classifier, scores and class counts."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from mmpretrain.models.heads import ClsHead
from mmpretrain.models.losses import FocalLoss
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..models.calibration.names import build_calibrations
from ..models.losses import APALoss
from ..models.losses.prior import check_prior, class_shares, set_prior


@MODELS.register_module()
class LongTailClsHead(ClsHead):
    """A linear or cosine classifier with the scores of its loss.

    With :class:`~apa_mmdet.models.APALoss` scores are APA of the logits, independent of
    one another: sigmoid for ``lam=1``, Gumbel for ``lam=0``. With MMPretrain's losses
    they are softmax, or sigmoid if the loss uses that. All of these losses take the
    soft labels of MixUp and CutMix.

    At test time the scores can be calibrated by the class counts of the training data,
    which ``ClassFrequencyHook`` fills in and checkpoints keep::

        model = dict(head=dict(calibration="PostCompensation"))

    Args:
        num_classes: Number of classes C.
        in_channels: Number of features.
        predictor_cfg: The classifier, such as ``dict(type='CosineLinear')``; linear
            with a bias if None.
        loss: The loss; an APALoss gets ``num_classes`` from the head.
        prior: With an APALoss, the initial score of every class, in (0, 1), or
            ``'frequency'`` for the class's share of the training images; the bias is
            the logit for it. If None, the bias starts at 0.
        calibration: ``'PostCompensation'``, ``'LogitAdjustment'``,
            ``'LogitAdjustment:tau=0.5'``, ``'NORCAL'`` or a dict with ``type``; see
            :mod:`apa_mmdet.models.calibration.rules`. None for the scores of the loss.
        init_cfg: As in MMPretrain's heads; by default a linear classifier starts from a
            normal distribution with standard deviation 0.01, as in ``LinearClsHead``.
        **kwargs: As in MMPretrain's ``ClsHead``.

    Attributes:
        class_counts: Buffer (C,), int64, training images of each class; zeros until
            ``ClassFrequencyHook`` or a checkpoint fills it.

    Raises:
        TypeError: If ``prior`` is given and the loss is not an APALoss.
        ValueError: If an argument is out of range or does not fit another.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        predictor_cfg: dict | None = None,
        loss: dict | nn.Module | None = None,
        prior: float | str | None = None,
        calibration: Mapping | str | None = None,
        init_cfg: dict | list | None = None,
        **kwargs,
    ) -> None:
        loss = dict(type="CrossEntropyLoss") if loss is None else loss
        if isinstance(loss, dict) and str(loss.get("type")).endswith("APALoss"):
            loss = dict(num_classes=num_classes) | loss
        if predictor_cfg is None:
            init_cfg = init_cfg or dict(type="Normal", layer="Linear", std=0.01)
        super().__init__(loss=loss, init_cfg=init_cfg, **kwargs)
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes={num_classes!r}, expected an integer >= 1")
        self.num_classes, self.in_channels = num_classes, in_channels
        if predictor_cfg is None:
            self.fc = nn.Linear(in_channels, num_classes)
        else:
            sizes = dict(in_features=in_channels, out_features=num_classes)
            self.fc = MODELS.build(dict(predictor_cfg, **sizes))
        if isinstance(self.loss_module, APALoss):
            self._check_loss(self.loss_module)
        if prior is not None:
            check_prior(prior, self.loss_module, self.fc, "a loss", "predictor_cfg")
        self.prior = prior
        rules = [None] if calibration is None else build_calibrations(calibration)
        if len(rules) > 1:
            raise ValueError(
                f"calibration={calibration!r}: expected one; test once with each"
            )
        self.calibration = None if calibration is None else next(iter(rules.values()))
        counts = torch.zeros(num_classes, dtype=torch.int64)
        self.register_buffer("class_counts", counts)

    def _check_loss(self, loss: APALoss) -> None:
        if loss.num_classes != self.num_classes:
            raise ValueError(
                f"the head has num_classes={self.num_classes} but its APALoss has "
                f"num_classes={loss.num_classes}; leave it out there"
            )
        if loss.rare_threshold is not None:
            raise ValueError(
                f"loss.rare_threshold={loss.rare_threshold}: without background, rare "
                f"classes would have no negatives at all; drop it"
            )

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, then set the bias for the prior.

        MMEngine's Runner calls this after the hooks' ``before_run`` and before the
        first iteration.

        Raises:
            RuntimeError: If prior or calibration need class counts and there are none.
            ValueError: As :meth:`check_class_counts`.
        """
        super().init_weights()
        self.check_class_counts()
        if self.prior is None:
            return
        prior = self.prior
        if prior == "frequency":
            self._require_counts("prior='frequency'")
            prior = class_shares(self.class_counts).clamp(max=1 - 1e-6)
        set_prior(self.fc, self.loss_module, prior)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Return logits (N, C) for features of which the last are (N, in_channels)."""
        return self.fc(self.pre_logits(feats))

    def scores(self, cls_score: Tensor) -> Tensor:
        """Return scores (N, C) in float32 for logits (N, C), calibrated if asked for.

        Raises:
            RuntimeError: If scores are to be calibrated and class counts are missing.
        """
        activation, is_softmax = self._activation()
        if self.calibration is None:
            return activation(cls_score.float())
        self._require_counts(f"calibration={type(self.calibration).__name__!r}")
        statistics = self._statistics()
        return self.calibration(cls_score, activation, statistics, is_softmax)

    def _activation(self):
        """Return the loss's activation, and whether its scores compete."""
        loss = self.loss_module
        if isinstance(loss, APALoss):
            return lambda logits: loss.get_activation(logits)[:, :-1], False
        uses_sigmoid = getattr(getattr(loss, "ce", loss), "use_sigmoid", False)
        if uses_sigmoid or isinstance(loss, FocalLoss):
            return torch.sigmoid, False
        return lambda logits: logits.softmax(dim=1), True

    def _statistics(self) -> SimpleNamespace:
        """Return the counts as calibrations of detectors expect them.

        An image shows one class, once.
        """
        counts = self.class_counts
        return SimpleNamespace(
            num_classes=self.num_classes,
            image_counts=counts,
            box_counts=counts,
            num_images=counts.sum(),
            fractal_dimension=torch.ones_like(counts, dtype=torch.float32),
        )

    def _get_predictions(
        self, cls_score: Tensor, data_samples: list[DataSample | None] | None
    ) -> list[DataSample]:
        scores = self.scores(cls_score)
        labels = scores.argmax(dim=1, keepdim=True)
        samples = [None] * len(scores) if data_samples is None else data_samples
        return [
            (DataSample() if sample is None else sample)
            .set_pred_score(score)
            .set_pred_label(label)
            for sample, score, label in zip(samples, scores, labels)
        ]

    def set_class_counts(self, counts: Tensor) -> None:
        """Set ``class_counts``.

        Args:
            counts: Integers (C,), at least 0.

        Raises:
            ValueError: If they are of another number of classes, or all zero.
        """
        if counts.shape != self.class_counts.shape or not counts.any():
            raise ValueError(
                f"the training data has {counts.numel()} classes and {counts.sum():,} "
                f"images, but the head has num_classes={self.num_classes}; set it to "
                f"the data set's"
            )
        self.class_counts.copy_(counts)

    def check_class_counts(self) -> None:
        """Check that the calibration has the counts that it needs.

        Raises:
            RuntimeError: If there are none.
            ValueError: If a class has none and the calibration needs some.
        """
        if self.calibration is not None:
            self._require_counts(f"calibration={type(self.calibration).__name__!r}")
            self.calibration.check(self._statistics())

    def _require_counts(self, setting: str) -> None:
        if not self.class_counts.any():
            raise RuntimeError(
                f"{setting} of the head needs the class counts of the training data, "
                f"and neither the checkpoint nor a hook has given them: train with "
                f"dict(type='ClassFrequencyHook') in custom_hooks, which keeps them in "
                f"the checkpoint, or test with tools/test.py --read-counts"
            )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # It describes the data, not the model; published checkpoints lack it.
        state_dict.setdefault(prefix + "class_counts", self.class_counts)
        super()._load_from_state_dict(state_dict, prefix, *args)
