"""Four distributions compared on one series of values.

Values of one image are not independent, so a likelihood or a test that counts each of
them overstates what they prove. The intervals are therefore of a bootstrap over images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .fit import APAFit, NormalFit, fit_apa, fit_normal
from .statistics import Histogram

DISTRIBUTIONS = ("normal", "logistic", "gumbel", "apa")
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
_INTERVAL = (0.025, 0.975)
_FIXED_LAM = {"logistic": 1.0, "gumbel": 0.0}


def fit_distribution(
    name: str,
    values: np.ndarray,
    weights: np.ndarray | None = None,
    start: APAFit | NormalFit | None = None,
) -> APAFit | NormalFit:
    """Return the fit of one of ``DISTRIBUTIONS``; arguments as for :func:`.fit_apa`."""
    if name == "normal":
        return fit_normal(values, weights)
    return fit_apa(values, weights, _FIXED_LAM.get(name), start)


def ks_distance(
    fit: APAFit | NormalFit, edges: np.ndarray, counts: np.ndarray
) -> float:
    """Return the Kolmogorov-Smirnov distance of a fit from a histogram.

    It is that at the edges of the bins, so it can miss up to the share of the fullest.
    """
    shares = np.concatenate([[0], counts.cumsum()]) / counts.sum()
    return float(np.abs(fit.cdf(edges) - shares).max())


def ks_distance_of_values(fit: APAFit | NormalFit, values: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of a fit from (n,) values."""
    values = np.sort(values)
    n, cdf = len(values), fit.cdf(values)
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max()))


def describe_histogram(histogram: Histogram) -> dict[str, Any]:
    """Return what is known of the values in a histogram.

    Returns:
        ``count``, ``not_finite``, ``mean``, ``std``, ``skewness``, ``kurtosis`` (3 for
        a normal distribution), ``quantiles`` by share and ``fits``: by name, the
        parameters, ``log_likelihood``, ``aic`` and ``ks``, each with its 95 % interval
        over images as ``<name>_low`` and ``<name>_high``. In place of ``fits``,
        ``too_few`` says why there are none.
    """
    counts, centers, edges = histogram.counts, histogram.centers, histogram.edges
    record = dict(count=histogram.total, not_finite=histogram.num_not_finite)
    if not histogram.total:
        return dict(record, too_few="no values")
    record.update(moments(centers, counts[0]))
    quantiles = histogram.quantiles(np.array(QUANTILES))
    record["quantiles"] = {
        str(share): float(value) for share, value in zip(QUANTILES, quantiles)
    }
    record["fits"] = fits = {}
    for name in DISTRIBUTIONS:
        try:
            fit = fit_distribution(name, centers, counts[0])
        except ValueError as error:
            del record["fits"]
            return dict(record, too_few=str(error))
        fits[name] = _figures(fit, ks_distance(fit, edges, counts[0]))
        resampled = []
        for replicate in counts[1:]:
            try:
                again = fit_distribution(name, centers, replicate, fit)
            except ValueError:  # too few values in this one
                continue
            resampled.append(_figures(again, ks_distance(again, edges, replicate)))
        for key in ("mu", "sigma", "lam", "kappa", "ks"):
            if key in fits[name] and resampled:
                ends = np.quantile([each[key] for each in resampled], _INTERVAL)
                for end, value in zip(("low", "high"), ends):
                    fits[name][f"{key}_{end}"] = float(value)
    return record


def describe_values(values: np.ndarray) -> dict[str, Any]:
    """Return the same for (n,) values, without intervals."""
    values = np.asarray(values, np.float64)
    is_finite = np.isfinite(values)
    record = dict(count=len(values), not_finite=int((~is_finite).sum()))
    values = values[is_finite]
    if not len(values):
        return dict(record, too_few="no values")
    record.update(moments(values, np.ones(len(values))))
    quantiles = np.quantile(values, QUANTILES)
    record["quantiles"] = {
        str(share): float(value) for share, value in zip(QUANTILES, quantiles)
    }
    try:
        fits = {name: fit_distribution(name, values) for name in DISTRIBUTIONS}
    except ValueError as error:
        return dict(record, too_few=str(error))
    record["fits"] = {
        name: _figures(fit, ks_distance_of_values(fit, values))
        for name, fit in fits.items()
    }
    return record


def best_of(record: dict[str, Any]) -> str:
    """Return the distribution of a record with the lowest AIC, or ""."""
    fits = record.get("fits", {})
    return min(fits, key=lambda name: fits[name]["aic"], default="")


def _figures(fit: APAFit | NormalFit, ks: float) -> dict[str, float]:
    names = ("mu", "sigma", "lam", "kappa", "log_likelihood", "aic")
    figures = {name: getattr(fit, name) for name in names if hasattr(fit, name)}
    return dict(figures, ks=ks)


def moments(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Return mean, standard deviation, skewness and kurtosis (normal: 3)."""
    shares = weights / weights.sum()
    mean = shares @ values
    deviations = values - mean
    variance = shares @ deviations**2
    moments = dict(mean=mean, std=np.sqrt(variance))
    for name, power in (("skewness", 3), ("kurtosis", 4)):
        moment = shares @ deviations**power
        moments[name] = moment / variance ** (power / 2) if variance else np.nan
    return {name: float(value) for name, value in moments.items()}
