r"""Maximum-likelihood fits of APA, logistic, Gumbel and normal distributions.

``APA(z - mu; lam, kappa)`` with ``kappa > 0`` is a cumulative distribution function.
With ``u = kappa * (z - mu)``, ``a = -ln APA`` and ``r = 1 / (lam + exp(u))``, its
density is ``kappa * r * APA``, and

    ln f(z) = ln(kappa) - u - (1 + lam) * a.

``mu`` is the mode for every ``lam``. ``lam = 1`` is the logistic distribution,
``lam = 0`` the Gumbel distribution of maxima (skewed to the right), and ``lam > 1`` is
skewed to the left: the type-I generalised logistic family, ``scipy.stats.genlogistic``
with ``c = 1 / lam``, ``scale = 1 / kappa`` and ``loc = mu + ln(lam) / kappa``. In that
parametrisation, ``c`` and ``loc`` diverge as ``lam`` goes to 0, so the likelihood is
maximised in (mu, kappa, lam), with the closed forms of :mod:`apa_mmdet.ops.formula`.

That the activation should fit the distribution of what it sees is the idea of Adaptive
Parametric Activation (Alexandridis et al., ECCV 2024). Its authors have published no
code for their analysis: these fits are a reconstruction from that idea.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize, special, stats

from ..ops import formula

MIN_VALUES = 50
"""How many values a fit needs."""
MIN_DISTINCT = 10
"""How many different values a fit needs."""
MAX_LAM = 1e3
"""The largest ``lam`` of a fit, which the activation's numerics guarantee."""
# Up to this many values, both of the optimizer's starts are tried on all of them.
_SUBSAMPLE = 5_000
# Keeps every trial point of the optimizer finite. No optimum has a value that far out:
# there, a is at most the number of values.
_MAX_SLOPE = math.exp(100.0)
# Of lam / (1 + lam), in which starting values are interpolated.
_SHAPES = np.linspace(0.0, MAX_LAM / (1 + MAX_LAM), 200)


@dataclass(frozen=True)
class APAFit:
    """A fitted ``APA(z - mu; lam, kappa)``.

    Attributes:
        mu: Location, the mode, in units of the values.
        lam: Shape, in [0, ``MAX_LAM``]: 0 is Gumbel, 1 logistic.
        kappa: Slope, positive, in 1 / units of the values.
        log_likelihood: Sum of ``ln f`` over the values, in nats.
        n: Number of values, or sum of their weights.
        num_parameters: 3, less those of ``lam`` and ``mu`` that were given.
    """

    mu: float
    lam: float
    kappa: float
    log_likelihood: float
    n: float
    num_parameters: int = 3

    @property
    def aic(self) -> float:
        """Akaike's criterion, ``2 * num_parameters - 2 * log_likelihood``."""
        return 2 * self.num_parameters - 2 * self.log_likelihood

    def log_pdf(self, z: np.ndarray) -> np.ndarray:
        """Return ``ln f(z)``."""
        u = self.kappa * (np.asarray(z, np.float64) - self.mu)
        return math.log(self.kappa) - u - (1 + self.lam) * _minus_log_apa(u, self.lam)

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """Return ``APA(z - mu; lam, kappa)``."""
        u = self.kappa * (np.asarray(z, np.float64) - self.mu)
        return np.exp(-_minus_log_apa(u, self.lam))


@dataclass(frozen=True)
class NormalFit:
    """A fitted normal distribution; attributes as in :class:`APAFit`."""

    mu: float
    sigma: float
    log_likelihood: float
    n: float
    num_parameters: int = 2

    aic = APAFit.aic

    def log_pdf(self, z: np.ndarray) -> np.ndarray:
        """Return ``ln f(z)``."""
        return stats.norm.logpdf(z, self.mu, self.sigma)

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """Return the probability of a value up to ``z``."""
        return stats.norm.cdf(z, self.mu, self.sigma)


def fit_apa(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    lam: float | None = None,
    start: APAFit | None = None,
    mu: float | None = None,
) -> APAFit:
    """Return the maximum-likelihood fit of ``APA(z - mu; lam, kappa)``.

    The likelihood rises towards ``lam = 0`` for values skewed to the right at least as
    much as a Gumbel distribution (skewness 1.14): the fit then has ``lam = 0`` exactly.

    Args:
        values: (n,) finite values, or the bin centres of a histogram.
        weights: (n,) non-negative weights, such as a histogram's counts. By default 1.
        lam: Keep ``lam`` at this value: 1 fits a logistic distribution, 0 a Gumbel.
        start: A fit of similar values, from which the optimizer then starts.
        mu: Keep ``mu`` at this value: 0 fits an activation, which has no shift.

    Raises:
        ValueError: If there are too few values or different ones, a value is not
            finite, a weight is negative or not finite, or ``lam`` is out of range.
    """
    values, weights = _checked(values, weights)
    if lam is not None and not 0 <= lam <= MAX_LAM:
        raise ValueError(f"lam={lam!r}, expected a value from 0 to {MAX_LAM:g}")
    total = weights.sum()
    mean, sigma, skewness = _moments(values, weights / total)
    x, w = (values - mean) / sigma, weights / total
    mode = None if mu is None else (mu - mean) / sigma
    if start is not None:
        kappa = start.kappa * sigma
        starts = [((start.mu - mean) / sigma, math.log(kappa), _shape(start.lam))]
    elif lam is not None:
        starts = [_start(_shape(lam))]
    else:
        by_skewness = np.interp(-skewness, -_UNIT_SKEWNESS, _SHAPES)
        # Of some mixtures the first leads to a worse maximum than the second.
        starts = [_start(by_skewness), _start(0.0)]
    if len(starts) > 1 and len(x) > _SUBSAMPLE:
        step = -(-len(x) // _SUBSAMPLE)
        part = w[::step] / w[::step].sum()
        starts = [_minimize(x[::step], part, starts, lam, mode).x]
    best = _minimize(x, w, starts, lam, mode)
    m, log_kappa, shape = best.x
    return APAFit(
        mu=float(mean + sigma * m if mu is None else mu),
        lam=float(min(shape / (1 - shape), MAX_LAM) if lam is None else lam),
        kappa=math.exp(log_kappa) / sigma,
        log_likelihood=float(-total * (best.fun + math.log(sigma))),
        n=float(total),
        num_parameters=1 + (lam is None) + (mu is None),
    )


def fit_normal(values: np.ndarray, weights: np.ndarray | None = None) -> NormalFit:
    """Return the maximum-likelihood fit of a normal distribution.

    Arguments and errors are those of :func:`fit_apa`.
    """
    values, weights = _checked(values, weights)
    n = weights.sum()
    mean, sigma, _ = _moments(values, weights / n)
    log_likelihood = -n * (math.log(sigma) + 0.5 * math.log(2 * math.pi) + 0.5)
    return NormalFit(float(mean), float(sigma), float(log_likelihood), float(n))


def _checked(
    values: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return values of positive weight, and their weights, both float64."""
    values = np.asarray(values, np.float64).ravel()
    if weights is None:
        weights = np.ones(len(values))
    weights = np.asarray(weights, np.float64).ravel()
    if len(weights) != len(values):
        raise ValueError(
            f"{len(weights)} weights for {len(values)} values, expected as many"
        )
    for name, array, is_good, expected in (
        ("value", values, np.isfinite(values), "finite values"),
        (
            "weight",
            weights,
            np.isfinite(weights) & (weights >= 0),
            "finite weights of at least 0",
        ),
    ):
        if not is_good.all():
            first = int(np.argmin(is_good))
            raise ValueError(
                f"{name} {first + 1} of {len(array)} is {array[first]}, "
                f"expected {expected}"
            )
    values, weights = values[weights > 0], weights[weights > 0]
    if weights.sum() < MIN_VALUES:
        raise ValueError(
            f"{weights.sum():.10g} values are too few to fit a distribution: at least "
            f"{MIN_VALUES} are needed"
        )
    head = np.unique(values[:1000])
    distinct = len(head) if len(head) >= MIN_DISTINCT else len(np.unique(values))
    if distinct < MIN_DISTINCT:
        raise ValueError(
            f"only {distinct} of the {weights.sum():.10g} values are different (the "
            f"first is {values[0]:g}): at least {MIN_DISTINCT} are needed to fit a "
            f"distribution"
        )
    return values, weights


def _moments(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Return mean, standard deviation and skewness for weights that sum to 1."""
    mean = weights @ values
    deviations = values - mean
    sigma = math.sqrt(weights @ deviations**2)
    return mean, sigma, weights @ (deviations / sigma) ** 3


def _shape(lam: float) -> float:
    return lam / (1 + lam)


def _unit_moments(shape: np.ndarray | float) -> tuple[np.ndarray, ...]:
    """Return mean, deviation and skewness of APA(z; lam, 1), lam of a shape."""
    # The Gumbel limit to the precision that a starting value needs.
    lam = np.maximum(shape / (1 - np.asarray(shape)), 1e-6)
    c = 1 / lam
    sigma = np.sqrt(special.polygamma(1, c) + special.polygamma(1, 1))
    third = special.polygamma(2, c) - special.polygamma(2, 1)
    return (
        special.digamma(c) - special.digamma(1) + np.log(lam),
        sigma,
        third / sigma**3,
    )


# Descends from 1.14, Gumbel, by 0, logistic, to -2, exponential.
_UNIT_SKEWNESS = _unit_moments(_SHAPES)[2]


def _start(shape: float) -> tuple[float, float, float]:
    """Return (mu, ln kappa, shape) with mean 0 and deviation 1."""
    mean, sigma, _ = _unit_moments(shape)
    return -mean / sigma, math.log(sigma), shape


def _minus_log_apa(u: np.ndarray, lam: float) -> np.ndarray:
    """Return ``a = -ln APA`` at ``u = kappa * (z - mu)``."""
    lam, one = torch.tensor([[lam], [1.0]], dtype=torch.float64)
    return formula.log_apa(torch.as_tensor(u), lam, one).neg_().numpy()


def _minimize(
    x: np.ndarray,
    w: np.ndarray,
    starts: list,
    lam: float | None,
    mode: float | None,
) -> optimize.OptimizeResult:
    """Return the best minimum of the mean of ``-ln f`` by (mu, ln kappa, shape).

    ``shape = lam / (1 + lam)`` maps all ``lam`` to [0, 1), and the derivative by it is
    finite at 0.
    """
    shapes = (0.0, _SHAPES[-1]) if lam is None else (_shape(lam), _shape(lam))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        m, log_kappa, shape = parameters
        kappa, lam = math.exp(log_kappa), shape / (1 - shape)
        u = kappa * (x - m)
        parts = formula.positive_cross_entropy(
            torch.as_tensor(u), torch.tensor(lam, dtype=torch.float64), _MAX_SLOPE
        )
        a, r, minus_by_lam = (part.numpy() for part in parts)
        by_u = 1 - (1 + lam) * r
        value = w @ (u + (1 + lam) * a) - log_kappa
        # d((1 + lam) * a) / dlam = a + (1 + lam) * da/dlam = r + da/dlam.
        by_shape = w @ (r - minus_by_lam) / (1 - shape) ** 2
        return value, np.array([-kappa * (w @ by_u), w @ (u * by_u) - 1, by_shape])

    results = [
        optimize.minimize(
            loss,
            start if mode is None else (mode, *start[1:]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(mode, mode), (-30.0, 30.0), shapes],
            options=dict(ftol=1e-14, gtol=1e-9, maxiter=500),
        )
        for start in starts
    ]
    return min(results, key=lambda result: result.fun)
