"""Fits recover known distributions, and agree with SciPy's own."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from apa_mmdet.analysis.compare import (
    DISTRIBUTIONS,
    fit_distribution,
    ks_distance,
    ks_distance_of_values,
)
from apa_mmdet.analysis.fit import (
    MAX_LAM,
    MIN_VALUES,
    APAFit,
    fit_apa,
    fit_normal,
)


def distribution(mu, lam, kappa):
    """The same distribution as SciPy writes it."""
    if lam == 0:
        return stats.gumbel_r(loc=mu, scale=1 / kappa)
    loc = mu + np.log(lam) / kappa
    return stats.genlogistic(c=1 / lam, loc=loc, scale=1 / kappa)


def sample(n, mu, lam, kappa, seed=0):
    return distribution(mu, lam, kappa).rvs(n, np.random.default_rng(seed))


def standard_errors(truth, values):
    """Asymptotic standard errors of (mu, lam, kappa): the inverse information."""
    scores = []
    for name in ("mu", "lam", "kappa"):
        at, step = getattr(truth, name), 1e-4
        low, high = at - step, at + step
        if name == "lam" and low < 0:
            low = at
        difference = replace(truth, **{name: high}).log_pdf(values) - replace(
            truth, **{name: low}
        ).log_pdf(values)
        scores.append(difference / (high - low))
    return np.sqrt(np.diag(np.linalg.inv(np.array(scores) @ np.array(scores).T)))


@pytest.mark.parametrize(
    "n, mu, lam, kappa",
    [
        (n, *parameters)
        for parameters in [(-4, 1, 1), (0.5, 0, 2), (2, 0.2, 0.3), (-1, 4, 1.5)]
        for n in (1_000, 30_000)
    ]
    + [(1_000_000, 2, 0.2, 0.3)],
)
def test_parameters_are_recovered(n, mu, lam, kappa):
    values = sample(n, mu, lam, kappa)
    fit = fit_apa(values)
    truth = APAFit(mu, lam, kappa, 0.0, n)
    errors = standard_errors(truth, values)
    assert (errors < 12 / np.sqrt(n) * np.array([1 / kappa, 1 + lam, kappa])).all()
    for name, error in zip(("mu", "lam", "kappa"), errors):
        assert abs(getattr(fit, name) - getattr(truth, name)) < 4 * error, name
    assert fit.n == n
    # The maximum is at least as likely as the truth, and by no more than chance.
    gain = fit.log_likelihood - truth.log_pdf(values).sum()
    assert -1e-6 * n < gain < 12
    assert ks_distance_of_values(fit, values) < 1.5 / np.sqrt(n)


@pytest.mark.parametrize("lam", [0.0, 1e-12, 0.3, 1.0, 7.0, MAX_LAM])
def test_density_and_cdf_are_those_of_scipy(lam):
    fit, z = APAFit(-1.0, lam, 0.7, 0.0, 1), np.linspace(-12, 30, 300)
    theirs = distribution(-1.0, lam if lam > 1e-6 else 0, 0.7)
    np.testing.assert_allclose(fit.log_pdf(z), theirs.logpdf(z), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fit.cdf(z), theirs.cdf(z), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "name, theirs",
    [("normal", stats.norm), ("logistic", stats.logistic), ("gumbel", stats.gumbel_r)],
)
def test_two_parameter_fits_are_those_of_scipy(name, theirs):
    values = sample(3_000, 1, 0.4, 2)
    fit = fit_distribution(name, values)
    loc, scale = theirs.fit(values)
    assert fit.mu == pytest.approx(loc, abs=1e-6)
    found = fit.sigma if name == "normal" else 1 / fit.kappa
    assert found == pytest.approx(scale, rel=1e-6)
    expected = theirs.logpdf(values, loc, scale).sum()
    assert fit.log_likelihood == pytest.approx(expected, abs=1e-6)
    assert fit.aic == pytest.approx(4 - 2 * expected)
    assert fit.log_pdf(values).sum() == pytest.approx(expected, abs=1e-6)


def mixture(*components):
    return np.concatenate(
        [sample(n, mu, lam, kappa, seed) for seed, (n, mu, lam, kappa) in components]
    )


@pytest.mark.parametrize(
    "values",
    [
        mixture(*enumerate([(2_000, -3, 1, 2), (1_000, 0, 1, 1)])),
        mixture(*enumerate([(2_000, 0, 0, 2), (2_000, 3, 2, 2)])),
        mixture(*enumerate([(300, -6, 1, 3), (2_000, -1, 0.5, 1)])),
    ],
    ids=["right", "two-modes", "left"],
)
def test_mixtures_are_fitted_as_well_as_scipy_does(values):
    fit = fit_apa(values)
    theirs = stats.genlogistic.logpdf(values, *stats.genlogistic.fit(values)).sum()
    assert fit.log_likelihood > theirs - 1e-3
    for name in ("logistic", "gumbel"):
        restricted = fit_distribution(name, values)
        assert fit.log_likelihood >= restricted.log_likelihood - 1e-6
    # No neighbour is more likely.
    for name in ("mu", "lam", "kappa"):
        for step in (-1e-3, 1e-3):
            near = replace(fit, **{name: max(getattr(fit, name) + step, 0)})
            assert near.log_pdf(values).sum() <= fit.log_likelihood + 1e-6


def test_fit_follows_shift_and_scale():
    values = sample(2_000, 0, 0.5, 1)
    fit, moved = fit_apa(values), fit_apa(1e4 + 1e-3 * values)
    assert moved.mu == pytest.approx(1e4 + 1e-3 * fit.mu, abs=1e-7)
    assert moved.kappa == pytest.approx(1e3 * fit.kappa, rel=1e-4)
    assert moved.lam == pytest.approx(fit.lam, rel=1e-3)


def test_a_given_mode_is_kept():
    values = sample(3_000, 0.3, 0.4, 2)
    fit, free = fit_apa(values, mu=0.3), fit_apa(values)
    assert fit.mu == 0.3 and fit.num_parameters == 2
    assert 0 <= free.log_likelihood - fit.log_likelihood < 6
    shifted = fit_apa(values, mu=0.0)
    assert shifted.mu == 0 and shifted.log_likelihood < fit.log_likelihood - 5
    for name in ("lam", "kappa"):
        for step in (-1e-3, 1e-3):
            near = replace(shifted, **{name: getattr(shifted, name) + step})
            assert near.log_pdf(values).sum() <= shifted.log_likelihood + 1e-6


def test_weights_count_as_repetitions():
    values = sample(500, 0, 0.5, 1)
    counts = np.random.default_rng(1).poisson(1, 500)
    fit, expected = fit_apa(values, counts), fit_apa(np.repeat(values, counts))
    assert fit.n == expected.n == counts.sum()
    for name in ("mu", "lam", "kappa", "log_likelihood"):
        assert getattr(fit, name) == pytest.approx(getattr(expected, name), rel=1e-5)


def test_histogram_is_fitted_like_its_values():
    values = sample(20_000, -2, 0.3, 1)
    counts, edges = np.histogram(values, bins=500)
    fit = fit_apa((edges[1:] + edges[:-1]) / 2, counts)
    expected = fit_apa(values)
    assert fit.lam == pytest.approx(expected.lam, abs=2e-3)
    assert fit.kappa == pytest.approx(expected.kappa, rel=2e-3)
    near = ks_distance(expected, edges, counts)
    exact = ks_distance_of_values(expected, values)
    assert exact - counts.max() / counts.sum() < near <= exact + 1e-12
    assert exact == pytest.approx(stats.kstest(values, expected.cdf).statistic)


def test_start_does_not_change_the_result():
    values = sample(2_000, -2, 0.3, 1)
    fit = fit_apa(values)
    again = fit_apa(values, start=replace(fit, mu=fit.mu + 1, lam=2.0))
    assert again.lam == pytest.approx(fit.lam, abs=1e-4)


@pytest.mark.parametrize(
    "values",
    [np.exp(np.linspace(0, 140, 100)), -np.exp(np.linspace(0, 140, 100))],
    ids=["right", "left"],
)
@pytest.mark.filterwarnings("error")
def test_heavy_tails_give_finite_fits(values):
    for fit in (fit_distribution(name, values) for name in DISTRIBUTIONS):
        assert np.isfinite(fit.log_likelihood)
        assert np.isfinite(fit.mu)
    assert 0 <= fit.lam <= MAX_LAM and fit.kappa > 0


@pytest.mark.parametrize(
    "values, options, message",
    [
        (np.arange(12), {}, f"12 values are too few .* at least {MIN_VALUES} are"),
        ([], {}, "0 values are too few"),
        (np.full(99, -2.0), {}, "only 1 of the 99 values are different .*-2"),
        ([0.0, np.nan] * 50, {}, "value 2 of 100 is nan, expected finite"),
        (np.arange(60), dict(weights=np.arange(60) - 9), "weight 1 of 60 is -9"),
        (np.arange(60), dict(weights=np.ones(6)), "6 weights for 60 values"),
        (np.arange(60), dict(weights=np.full(60, 0.5)), "30 values are too few"),
        (np.arange(60), dict(lam=-1), "lam=-1, expected a value from 0 to 1000"),
    ],
)
def test_unfit_values_are_refused(values, options, message):
    with pytest.raises(ValueError) as raised:
        fit_apa(np.asarray(values, float), **options)
    assert re.search(message, str(raised.value))
    assert "\n" not in str(raised.value)


def test_normal_fit_refuses_the_same():
    with pytest.raises(ValueError, match="too few"):
        fit_normal(np.arange(12))
