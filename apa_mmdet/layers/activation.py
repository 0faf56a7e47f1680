"""APA and AGLU as activation layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..ops import aglu, apa

# AGLU(1, kappa) stands in for these; relu's largest error is 0.2785 / kappa.
_STAND_INS = {"silu": (1.0, 1.0), "gelu": (1.0, 1.702), "relu": (1.0, 50.0)}


class _AdaptiveActivation(nn.Module):
    """What APA and AGLU share: parameters and their starting values."""

    _starts: dict[str, tuple] = {}

    def __init__(
        self,
        num_parameters: int = 1,
        init: str | Mapping = "uniform",
        learnable: bool = True,
        inplace: bool = False,
        channel_dim: int | None = None,
    ) -> None:
        super().__init__()
        if (
            not isinstance(num_parameters, int)
            or isinstance(num_parameters, bool)
            or num_parameters < 1
        ):
            raise ValueError(
                f"num_parameters={num_parameters!r}, expected 1 or the number of "
                f"channels"
            )
        self.num_parameters = num_parameters
        self.init = init
        self.learnable = learnable
        # mmcv's ConvModule passes inplace to every activation. Backward needs the
        # input, so overwriting it would save nothing.
        self.inplace = inplace
        self.channel_dim = channel_dim
        self._ranges = self._parse(init)
        # One axis only: MMDetection's heads re-initialise what has more. Drawn here and
        # not by reset_parameters(), because nn.init's functions do nothing while
        # diffusers builds a model for a checkpoint, which may lack these parameters.
        self.lambda_param, self.kappa_param = (
            nn.Parameter(torch.empty(num_parameters).uniform_(*bounds), learnable)
            for bounds in self._ranges
        )

    def _parse(self, init: str | Mapping) -> tuple[tuple[float, float], ...]:
        name = type(self).__name__
        if isinstance(init, str):
            if init not in self._starts:
                raise ValueError(
                    f"init={init!r} of {name}, expected one of "
                    f"{sorted(self._starts)} or dict(lam=..., kappa=...) with a number "
                    f"or a (low, high) range each"
                )
            values = self._starts[init]
        elif isinstance(init, Mapping) and set(init) == {"lam", "kappa"}:
            values = (init["lam"], init["kappa"])
        else:
            raise TypeError(
                f"init={init!r} of {name}, expected one of {sorted(self._starts)} or "
                f"dict(lam=..., kappa=...) with a number or a (low, high) range each"
            )
        ranges = tuple(_as_range(value, init) for value in values)
        if ranges[0][0] < 0:
            raise ValueError(
                f"init={init!r} of {name} starts lam at {ranges[0][0]}, expected "
                f"lam >= 0; use 0 for the Gumbel limit"
            )
        return ranges

    def reset_parameters(self) -> None:
        """Draw the starting values again."""
        for param, (low, high) in zip(
            (self.lambda_param, self.kappa_param), self._ranges
        ):
            nn.init.uniform_(param, low, high)

    def extra_repr(self) -> str:
        """Return what ``print(module)`` shows."""
        text = f"num_parameters={self.num_parameters}, init={self.init!r}"
        if not self.learnable:
            text += ", learnable=False"
        if self.channel_dim is not None:
            text += f", channel_dim={self.channel_dim}"
        return text


def _as_range(value: float | Sequence[float], init: object) -> tuple[float, float]:
    pair = (value, value) if isinstance(value, (int, float)) else value
    if (
        isinstance(pair, str)
        or not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in pair)
        or pair[0] > pair[1]
    ):
        raise ValueError(
            f"init={init!r} holds {value!r}, expected a finite number or a "
            f"(low, high) range with low <= high"
        )
    return float(pair[0]), float(pair[1])


class APA(_AdaptiveActivation):
    r"""Adaptive Parametric Activation, a gate with values in [0, 1].

    ``APA(z) = (1 + lam * exp(-kappa * z)) ** (-1 / lam)``, with learnable
    ``lambda_param`` and ``kappa_param`` of shape (num_parameters,).

    Source: Alexandridis et al., ECCV 2024, arXiv 2407.08567.

    Args:
        num_parameters: 1, or the number of channels for a pair per channel.
        init: Starting values. ``'uniform'``: lam in U(0, 1), kappa in U(-1, 0), as
            published for attention gates. ``'sigmoid'``: (1, 1), exactly the logistic
            sigmoid. ``'silu'``, ``'gelu'``, ``'relu'``: the gate of the AGLU that
            stands in for that activation. Or ``dict(lam=..., kappa=...)`` with a
            number or a (low, high) range each.
        learnable: If False, the parameters do not require gradients.
        inplace: Accepted for mmcv's ConvModule; the input is never modified.
        channel_dim: Axis of the channels; see :func:`apa_mmdet.ops.apa`.

    Raises:
        TypeError: If ``init`` is neither a name nor a dict of ``lam`` and ``kappa``.
        ValueError: If a name is unknown, lam is negative, a range is malformed, or
            ``num_parameters`` is not positive; in ``forward``, if the parameters do not
            fit the channels.
    """

    _starts = {
        "uniform": ((0.0, 1.0), (-1.0, 0.0)),
        "sigmoid": (1.0, 1.0),
        **_STAND_INS,
    }

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of ``x``, in its shape and dtype."""
        return apa(x, self.lambda_param, self.kappa_param, self.channel_dim)


class AGLU(_AdaptiveActivation):
    r"""Adaptive Generalised Linear Unit, ``AGLU(z) = z * APA(z)``.

    Source: Alexandridis et al., ECCV 2024, arXiv 2407.08567.

    Args:
        num_parameters: 1, or the number of channels for a pair per channel.
        init: Starting values. ``'uniform'``: lam in U(0, 1), kappa in U(1.0, 1.3), as
            published for detection. ``'silu'``: (1, 1), exactly SiLU. ``'gelu'``:
            (1, 1.702). ``'relu'``: (1, 50), within 0.0056 of ReLU, for weights that
            were pretrained with ReLU. Or ``dict(lam=..., kappa=...)`` with a number or
            a (low, high) range each.
        learnable: If False, the parameters do not require gradients.
        inplace: Accepted for mmcv's ConvModule; the input is never modified.
        channel_dim: Axis of the channels; see :func:`apa_mmdet.ops.aglu`.
        negative_slope: ``a`` in ``(1 - a) * AGLU(z) + a * z``, which stands in for a
            LeakyReLU of that slope.
        max_value: Upper bound of the result, as in ReLU6.

    Raises:
        TypeError: If ``init`` is neither a name nor a dict of ``lam`` and ``kappa``.
        ValueError: If a name is unknown, lam is negative, a range is malformed, or
            ``num_parameters`` is not positive; in ``forward``, if the parameters do not
            fit the channels.
    """

    _starts = {"uniform": ((0.0, 1.0), (1.0, 1.3)), **_STAND_INS}

    def __init__(
        self,
        num_parameters: int = 1,
        init: str | Mapping = "uniform",
        learnable: bool = True,
        inplace: bool = False,
        channel_dim: int | None = None,
        negative_slope: float = 0.0,
        max_value: float | None = None,
    ) -> None:
        super().__init__(num_parameters, init, learnable, inplace, channel_dim)
        self.negative_slope = negative_slope
        self.max_value = max_value

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of ``x``, in its shape and dtype."""
        return aglu(
            x,
            self.lambda_param,
            self.kappa_param,
            self.channel_dim,
            self.negative_slope,
            self.max_value,
        )

    def extra_repr(self) -> str:
        """Return what ``print(module)`` shows."""
        text = super().extra_repr()
        if self.negative_slope:
            text += f", negative_slope={self.negative_slope}"
        if self.max_value is not None:
            text += f", max_value={self.max_value}"
        return text
