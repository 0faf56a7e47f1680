"""APALoss: classification by APA for long-tailed data."""

from __future__ import annotations

import math

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ...ops import apa, apa_cross_entropy, log_apa
from .box_head_loss import BoxHeadLossMixin

# The published loss clamps logits to [-10, 10], where a Gumbel positive has the slope
# exp(10). Beyond that, this loss continues along its tangent and keeps its gradient.
_MAX_SLOPE = math.exp(10.0)


@MODELS.register_module()
class APALoss(BoxHeadLossMixin, nn.Module):
    """Binary cross-entropy over ``APA(logit)``, one logit per class, no background.

    ``lam = 1`` is the sigmoid classifier, ``lam = 0`` the Gumbel classifier of GOL
    (Alexandridis et al., ECCV 2022). The loss is summed over classes and averaged over
    proposals. It works as ``loss_cls`` of any Shared2FC or ConvFC box head, including
    those of Cascade and HTC; the background score is 0. It is also a ``loss`` of
    ``LongTailClsHead``, for classifiers: without background, with hard or soft labels.

    With ``rare_threshold``, negatives of classes whose ``class_frequency`` is below it
    are dropped (DropLoss, Hsieh et al., AAAI 2021): all of them on foreground
    proposals; on background proposals each is kept with probability (foreground
    proposals of rare classes) / (foreground proposals), 0 if there is no foreground.

    Args:
        num_classes: Number of classes C, without background.
        lam: Initial ``lam >= 0``.
        kappa: Initial ``kappa > 0``.
        learnable: None for fixed values, ``'shared'`` for one learnable pair,
            ``'class'`` for one pair per class.
        init: ``'frequency'`` starts the lam of each class at
            :func:`lam_of_frequency` of its ``class_frequency``, instead of at ``lam``.
            Fixed values then are a pair per class too, and are kept in checkpoints.
        rare_threshold: Frequency below which a class is rare; 0.0011 is published for
            LVIS v1. With None, nothing is dropped.
        loss_weight: Factor on the loss.
        reduction: ``'mean'`` (over proposals, or by ``avg_factor``), ``'sum'`` or
            ``'none'`` (N, C).

    Attributes:
        class_frequency: Buffer (C,), the share of annotated training images that show
            each class; zeros until ``ClassFrequencyHook`` or a checkpoint fills it.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        lam: float = 0.0,
        kappa: float = 1.0,
        learnable: str | None = None,
        init: str | None = None,
        rare_threshold: float | None = None,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.check_num_classes(num_classes)
        is_number = isinstance(lam, (int, float)) and 0 <= lam < math.inf
        _check(is_number, "lam", lam, "a finite value >= 0")
        is_number = isinstance(kappa, (int, float)) and 0 < kappa < math.inf
        _check(is_number, "kappa", kappa, "a finite value > 0")
        is_known = learnable in (None, "shared", "class")
        _check(is_known, "learnable", learnable, "None, 'shared' or 'class'")
        is_known = init in (None, "frequency") and (init, learnable) != (
            "frequency",
            "shared",
        )
        per_class = "None, or 'frequency' with learnable='class' or None"
        _check(is_known, "init", init, per_class)
        is_share = rare_threshold is None or 0 < rare_threshold <= 1
        share = "a share of images in (0, 1], or None to drop nothing"
        _check(is_share, "rare_threshold", rare_threshold, share)
        _check_reduction(reduction)
        self.num_classes = num_classes
        self.learnable = learnable
        self.rare_threshold = rare_threshold
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.init = init
        shape = (num_classes,) if learnable == "class" or init else (1,)
        for name, value in (("lambda_param", lam), ("kappa_param", kappa)):
            tensor = torch.full(shape, float(value))
            if learnable is None:
                self.register_buffer(name, tensor, persistent=init is not None)
            else:
                self.register_parameter(name, nn.Parameter(tensor))
        self.register_buffer("class_frequency", torch.zeros(num_classes))
        # Cached, because checking would synchronize with the GPU.
        self._has_frequency = False

    def init_weights(self) -> None:
        """Start lam where ``init`` says, and check that frequencies are there.

        MMEngine's Runner calls this after the hooks' ``before_run`` and before the
        first iteration.

        Raises:
            RuntimeError: If class frequencies are needed and missing.
        """
        if self.rare_threshold is not None:
            self.require_frequency(f"rare_threshold={self.rare_threshold}")
        if self.init == "frequency":
            self.require_frequency("init='frequency'")
            with torch.no_grad():
                self.lambda_param.copy_(lam_of_frequency(self.class_frequency))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # It describes the data, not the model; published checkpoints lack it.
        state_dict.setdefault(prefix + "class_frequency", self.class_frequency)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._has_frequency = bool(self.class_frequency.any())

    def set_class_frequency(self, frequency: Tensor) -> None:
        """Set ``class_frequency``.

        Args:
            frequency: Shape (C,), shares of images in [0, 1].

        Raises:
            ValueError: If the shape is wrong, or a value is out of range.
        """
        if frequency.shape != self.class_frequency.shape:
            raise ValueError(
                f"class frequencies have shape {tuple(frequency.shape)}, but APALoss "
                f"has num_classes={self.num_classes}; set num_classes of the loss and "
                f"of the heads to the data set's {frequency.numel()} classes"
            )
        if not bool(((frequency >= 0) & (frequency <= 1)).all()) or not frequency.any():
            raise ValueError(
                "class frequencies must be shares of images in [0, 1], not all zero; "
                f"got values from {frequency.min():g} to {frequency.max():g}"
            )
        self.class_frequency.copy_(frequency)
        self._has_frequency = True

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Return scores (N, C + 1) in float32; the last one, of background, is 0."""
        scores = apa(cls_score.float(), self.lambda_param, self.kappa_param)
        return torch.cat([scores, scores.new_zeros(scores.shape[0], 1)], dim=1)

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
        **kwargs,
    ) -> Tensor:
        """Return the classification loss.

        Args:
            cls_score: Logits (N, C).
            labels: (N,), int64; C is background, negative values are ignored. Or soft
                labels (N, C) in [0, 1], such as those of MixUp, CutMix and label
                smoothing: class c then contributes its positive loss times the label
                plus its negative loss times one minus the label, which for labels that
                sum to 1 is the expected loss of a label drawn from them.
            weight: Factor per proposal (N,).
            avg_factor: Divisor of the sum with ``'mean'``, by default N.
            reduction_override: Replaces ``reduction``.
            **kwargs: Ignored, as in MMDetection's other losses.

        Raises:
            RuntimeError: If class frequencies are needed and missing.
            ValueError: If labels are soft and ``rare_threshold`` is set.
        """
        reduction = reduction_override or self.reduction
        _check_reduction(reduction)
        if labels.dim() == 2:
            return self._soft_loss(cls_score, labels, weight, avg_factor, reduction)
        rows = (labels >= 0).to(self.class_frequency.dtype)
        rare = None
        if self.rare_threshold is not None:
            self.require_frequency(f"rare_threshold={self.rare_threshold}")
            rare = self.class_frequency < self.rare_threshold
        loss = self.loss_weight * apa_cross_entropy(
            cls_score,
            labels,
            self.lambda_param,
            self.kappa_param,
            weight=(rows if weight is None else rows * weight)[:, None],
            max_slope=_MAX_SLOPE,
            rare=rare,
            reduction="none" if reduction == "none" else "sum",
        )
        return _averaged(loss, len(labels), avg_factor, reduction)

    def _soft_loss(self, cls_score, labels, weight, avg_factor, reduction) -> Tensor:
        """Return the loss of soft labels (N, C)."""
        if self.rare_threshold is not None:
            raise ValueError(
                f"rare_threshold={self.rare_threshold} drops negatives beside a label, "
                f"but the labels are soft; drop rare_threshold, or whatever mixes "
                f"labels (batch_augments, train_cfg.augments)"
            )
        lam, kappa = self.lambda_param, self.kappa_param
        u = kappa * cls_score.to(torch.promote_types(cls_score.dtype, torch.float32))
        # Below u_min the positive loss continues along its tangent, as in
        # apa_cross_entropy. That u_min depends on lam does not change the gradient,
        # since the two agree there in value and slope.
        u_min = (1 / _MAX_SLOPE - lam.detach().clamp(min=0)).clamp(min=0).log()
        excess = (u_min - u).clamp(min=0)
        positive = _MAX_SLOPE * excess - log_apa(
            torch.maximum(u, u_min), lam, torch.ones_like(kappa)
        )
        background = torch.full_like(labels[:, 0], self.num_classes, dtype=torch.int64)
        negative = apa_cross_entropy(cls_score, background, lam, kappa)
        loss = self.loss_weight * (labels * positive + (1 - labels) * negative)
        if weight is not None:
            loss = loss * weight[:, None]
        if reduction == "none":
            return loss
        return _averaged(loss.sum(), len(labels), avg_factor, reduction)

    def require_frequency(self, setting: str) -> None:
        """Raise a RuntimeError if the class frequencies are missing.

        Args:
            setting: The setting that needs them, for the message.
        """
        if not self._knows_frequency():
            raise RuntimeError(
                f"{setting} needs the training data's class frequencies, and APALoss "
                f"has none. Add dict(type='ClassFrequencyHook') to custom_hooks, load "
                f"a checkpoint with class_frequency, call set_class_frequency(), or "
                f"drop {setting}"
            )

    def _knows_frequency(self) -> bool:
        if not self._has_frequency:
            self._has_frequency = bool(self.class_frequency.any())
        return self._has_frequency

    # As torch.compiler.assume_constant_result, without importing the compiler: a branch
    # on the tensor would break the graph.
    _knows_frequency._dynamo_marked_constant = True


def lam_of_frequency(frequency: Tensor) -> Tensor:
    """Return starting values of lam for class frequencies, ``0.7 / sqrt(frequency)``.

    Fits of APA to the logits of a sigmoid classifier trained on mini-LVIS follow it,
    whether of a class's own foreground proposals or of background proposals
    (docs/analysis.md gives both, and those on photographs, which fall less): the rarer
    a class, the more its logits are skewed to the left. Values stop at
    5, the largest of those fits, which classes in fewer than 2% of the images would
    exceed.

    Args:
        frequency: Shape (C,), shares of images in [0, 1].

    Returns:
        Shape (C,), values from 0.7 to 5.
    """
    return (0.7 * frequency.rsqrt()).clamp(max=5.0)


def _averaged(loss: Tensor, number: int, avg_factor, reduction: str) -> Tensor:
    if reduction != "mean":
        return loss
    return loss / (max(number, 1) if avg_factor is None else avg_factor)


def _check_reduction(reduction: str) -> None:
    is_known = reduction in ("mean", "sum", "none")
    _check(is_known, "reduction", reduction, "'mean', 'sum' or 'none'")


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r}, expected {expected}")
