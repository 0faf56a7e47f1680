"""The prior of a classifier: the scores at which it starts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...ops import formula
from .apa_loss import APALoss


def check_prior(
    prior: float | str,
    loss: nn.Module,
    classifier: nn.Module,
    loss_name: str,
    predictor_name: str,
) -> None:
    """Check that a classifier can start at a prior.

    Args:
        prior: A probability, or ``'frequency'``.
        loss: The classifier's loss.
        classifier: The layer whose bias is set.
        loss_name: What errors call the loss.
        predictor_name: The argument that chose the classifier.

    Raises:
        TypeError: If the loss is not an APALoss.
        ValueError: If the prior is neither, or the classifier has no bias.
    """
    if not isinstance(loss, APALoss):
        raise TypeError(
            f"prior={prior} needs {loss_name} of type 'APALoss', got "
            f"{type(loss).__name__}; drop prior or change the loss"
        )
    is_probability = isinstance(prior, (int, float)) and 0 < prior < 1
    if prior != "frequency" and not is_probability:
        raise ValueError(
            f"prior={prior}, expected a probability in (0, 1) or 'frequency'"
        )
    if getattr(classifier, "bias", None) is None:
        raise ValueError(
            f"prior={prior} needs a classifier with a bias, and "
            f"{type(classifier).__name__} has none; drop prior or {predictor_name}"
        )


def class_shares(counts: Tensor) -> Tensor:
    """Return the share of each class in counts or frequencies (C,), in float64.

    A class without images gets half the share of the rarest one.
    """
    share = counts.double() / counts.sum()
    return share.clamp(min=0.5 * share[share > 0].min().item())


@torch.no_grad()
def set_prior(classifier: nn.Module, loss: APALoss, prior: float | Tensor) -> None:
    """Set the bias (C,) at which the scores are ``prior``, a number or (C,)."""
    prior = torch.as_tensor(prior, dtype=torch.float64)
    lam = loss.lambda_param.double().clamp(min=0)
    classifier.bias.copy_(formula.logit(prior, lam, loss.kappa_param.double()))
