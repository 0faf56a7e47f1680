"""Calibrations for long tails: new scores from logits and class counts.

A box head's C class logits come first in ``cls_score`` (N, C + k); what follows, such
as the background logit of a softmax head, is not changed. The head's activation returns
scores (N, C + 1) with background last. Heads are of two kinds: the scores of a
*softmax* head compete and sum to 1 with the background; those of a *sigmoid* head,
whether with a sigmoid or with APA, are independent of one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from mmdet.registry import TASK_UTILS
from torch import Tensor

from .statistics import ClassStatistics

Activation = Callable[[Tensor], Tensor]


class Calibration:
    """Base class of the calibrations.

    Args:
        min_images: A class with fewer training images counts as having this many. With
            0, a class without training images is an error.
    """

    def __init__(self, min_images: int = 0) -> None:
        self.min_images = min_images
        _check(self, "min_images", 0)

    def check(self, statistics: ClassStatistics) -> None:
        """Raise a ValueError if a class has no training images and none are assumed."""
        missing = (statistics.image_counts == 0).nonzero().flatten().tolist()
        if missing and not self.min_images:
            name = type(self).__name__
            raise ValueError(
                f"calibration {name}: {len(missing)} of {statistics.num_classes} "
                f"classes have no boxes or images in the training data, the first is "
                f"label {missing[0]} (labels start at 0), and its scores cannot be "
                f"calibrated; remove such classes from the data set's metainfo, or "
                f"treat them as if one training image showed each of them: "
                f"{name}:min_images=1"
            )

    def score_thr(self, threshold: float, is_softmax: bool) -> float:
        """Return the threshold for calibrated scores, ``test_cfg``'s for others."""
        return threshold

    def __call__(
        self,
        cls_score: Tensor,
        activation: Activation,
        statistics: ClassStatistics,
        is_softmax: bool,
    ) -> Tensor:
        """Return calibrated scores (N, C + 1) in float32.

        Args:
            cls_score: Logits (N, C + k).
            activation: Returns scores of logits.
            statistics: Of the training data.
            is_softmax: Whether the head is a softmax head.
        """
        return self._scores(cls_score, activation, statistics, is_softmax)

    def _scores(
        self,
        cls_score: Tensor,
        activation: Activation,
        statistics: ClassStatistics,
        is_softmax: bool,
    ) -> Tensor:
        raise NotImplementedError

    def _image_counts(self, statistics: ClassStatistics) -> Tensor:
        return statistics.image_counts.clamp(min=self.min_images).float()


@TASK_UTILS.register_module()
class FRACAL(Calibration):
    """Calibration by how frequent a class is and how evenly it is spread in space.

    With ``p_c`` the share of training images that show class c, ``D_c`` its fractal
    dimension (:func:`~.fractal.fractal_dimension`) and logarithms to base ``base``:

    - softmax heads: ``softmax(z_c - log p_c - log C)``, in which the background logit
      is unchanged, then each class's score divided by ``D_c ** power``, and all scores
      with the background divided by their sum;
    - sigmoid heads: ``eta(z) * eta(z - log p_c - log w_c - 2 * log C)`` with
      ``w_c = D_c ** power / sum(D ** power)`` and ``eta`` the head's own activation.
      The paper has it for the sigmoid; with APA it is an extension. The product of two
      scores is compared with the square of ``score_thr``.

    Source: Fractal Calibration for Long-tailed Object Detection, Alexandridis et al.,
    CVPR 2025.

    Args:
        base: Base of the logarithms, above 1.
        power: Exponent of the dimension; with 0 only frequency counts.
        min_images: As in :class:`Calibration`.
    """

    def __init__(
        self, base: float = 10.0, power: float = 2.0, min_images: int = 0
    ) -> None:
        super().__init__(min_images)
        self.base = base
        self.power = power
        _check(self, "base", 1, is_above=True)
        _check(self, "power", 0)

    def score_thr(self, threshold: float, is_softmax: bool) -> float:
        """Return the threshold, squared where a product of two scores meets it."""
        return threshold if is_softmax else threshold**2

    def _scores(self, cls_score, activation, statistics, is_softmax):
        num_classes = statistics.num_classes
        share = self._image_counts(statistics) / statistics.num_images
        space = statistics.fractal_dimension.float() ** self.power
        if is_softmax:
            shift = -(share * num_classes).log() / math.log(self.base)
            scores = activation(_add(cls_score, shift))
            return _normalise(_divide(scores, space))
        weight = space / space.sum()
        shift = -(share * weight * num_classes**2).log() / math.log(self.base)
        scores = activation(cls_score)
        factor = activation(_add(cls_score, shift))
        return _on_classes(scores, num_classes, lambda s: s * factor[:, :num_classes])


@TASK_UTILS.register_module()
class NORCAL(Calibration):
    """Scores divided by a power of the number of training images, then normalised.

    With ``n_c`` the number of training images that show class c:

    - softmax heads: each class's score is divided by ``n_c ** gamma``, then all scores
      with the background by their sum;
    - sigmoid heads: ``q / (q + 1 - p_c)`` with ``q = p_c / n_c ** gamma``, which
      normalises each class with its own complement as the background. For the sigmoid
      that is ``sigmoid(z_c - gamma * ln n_c)``; for APA it is an extension.

    Source: On Model Calibration for Long-Tailed Object Detection and Instance
    Segmentation, Pan et al., NeurIPS 2021, which selects ``gamma`` for each model.

    Args:
        gamma: Exponent of the number of images.
        min_images: As in :class:`Calibration`.
    """

    def __init__(self, gamma: float = 0.6, min_images: int = 0) -> None:
        super().__init__(min_images)
        self.gamma = gamma
        _check(self, "gamma", 0)

    def _scores(self, cls_score, activation, statistics, is_softmax):
        divisor = self._image_counts(statistics) ** self.gamma
        scores = activation(cls_score.float())
        if is_softmax:
            return _normalise(_divide(scores, divisor))
        # q / (q + 1 - p), multiplied by the divisor above and below.
        return _on_classes(
            scores, statistics.num_classes, lambda p: p / (p + divisor * (1 - p))
        )


@TASK_UTILS.register_module()
class LogitAdjustment(Calibration):
    """Logits minus the logarithm of the class's prior.

    With ``pi_c`` the share of class c in all training boxes, the head's own activation
    of ``z_c - tau * (ln pi_c + ln C)``. The constant ``tau * ln C`` decides nothing
    between classes; it keeps the background and independent scores unchanged if all
    classes are equally frequent.

    Source: Long-Tail Learning via Logit Adjustment, Menon et al., ICLR 2021, for
    softmax classifiers without background.

    Args:
        tau: Strength; 1 fits a softmax classifier trained on the prior.
        min_images: As in :class:`Calibration`; such a class counts as having as many
            boxes.
    """

    def __init__(self, tau: float = 1.0, min_images: int = 0) -> None:
        super().__init__(min_images)
        self.tau = tau
        _check(self, "tau", 0)

    def _scores(self, cls_score, activation, statistics, is_softmax):
        counts = statistics.box_counts.clamp(min=self.min_images).float()
        shift = -self.tau * (counts * statistics.num_classes / counts.sum()).log()
        return activation(_add(cls_score, shift))


@TASK_UTILS.register_module()
class PostCompensation(Calibration):
    """Logits plus the log-odds against the class in the training data.

    With ``n_c`` the images of class c (of a detector: its boxes) and N their sum over
    the classes, the head's own activation of ``z_c + ln((N - n_c) / n_c)``. The
    published classifiers are trained with plain softmax and tested like this.

    Source: Inverse Image Frequency for Long-tailed Image Recognition, Alexandridis et
    al., IEEE TIP 2023.

    Args:
        min_images: As in :class:`Calibration`.
    """

    def _scores(self, cls_score, activation, statistics, is_softmax):
        counts = statistics.box_counts.clamp(min=self.min_images).double()
        # A class that has everything would never be predicted.
        others = (counts.sum() - counts).clamp(min=1e-3)
        return activation(_add(cls_score, (others / counts).log().float()))


def _add(cls_score: Tensor, shift: Tensor) -> Tensor:
    """Add ``shift`` (C,) to the class logits."""
    num_others = cls_score.shape[1] - len(shift)
    return cls_score.float() + torch.cat([shift, shift.new_zeros(num_others)])


def _divide(scores: Tensor, divisor: Tensor) -> Tensor:
    """Divide the classes' scores by ``divisor`` (C,)."""
    return _on_classes(scores, len(divisor), lambda classes: classes / divisor)


def _on_classes(scores: Tensor, num_classes: int, function: Activation) -> Tensor:
    """Apply a function to the classes' scores only."""
    classes, others = scores[:, :num_classes], scores[:, num_classes:]
    return torch.cat([function(classes), others], dim=1)


def _normalise(scores: Tensor) -> Tensor:
    return scores / scores.sum(dim=1, keepdim=True)


def _check(rule: Calibration, name: str, low: float, is_above: bool = False) -> None:
    """Check that an argument is a finite number, at least or above ``low``."""
    value = getattr(rule, name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and low <= value < math.inf and not (is_above and value == low):
        return
    raise ValueError(
        f"calibration {type(rule).__name__}: {name}={value!r}, expected a finite "
        f"number {'>' if is_above else '>='} {low}"
    )
