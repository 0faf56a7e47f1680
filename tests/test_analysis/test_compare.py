"""Comparing the four distributions on values with a known one."""

import numpy as np
import pytest
from scipy import stats

from apa_mmdet.analysis.compare import (
    best_of,
    describe_histogram,
    describe_values,
)
from apa_mmdet.analysis.statistics import Histogram

NUM_REPLICATES = 16


def histogram_of(images):
    histogram = Histogram(NUM_REPLICATES)
    for number, values in enumerate(images):
        weights = np.random.default_rng(number).poisson(1, 1 + NUM_REPLICATES)
        weights[0] = 1
        histogram.add(values, weights)
    return histogram


@pytest.mark.parametrize(
    "name, source",
    [
        ("normal", stats.norm(-3, 2)),
        ("logistic", stats.logistic(-3, 2)),
        ("gumbel", stats.gumbel_r(-3, 2)),
        ("apa", stats.genlogistic(c=2.5, loc=-3, scale=2)),
    ],
)
def test_the_true_distribution_is_the_best(name, source):
    values = source.rvs((50, 400), np.random.default_rng(3))
    record = describe_histogram(histogram_of(values))
    fits = record["fits"]
    if name != "apa":  # it contains two of the others, and may follow chance as well
        assert fits["apa"]["aic"] > fits[name]["aic"] - 10
        del fits["apa"]
    assert best_of(record) == name
    assert fits[name]["ks"] < min(fit["ks"] for fit in fits.values()) + 1e-3
    assert fits[name]["ks_low"] < 0.02
    assert (record["count"], record["not_finite"]) == (20_000, 0)
    exact = describe_values(values.ravel())
    for key in ("mean", "std", "skewness", "kurtosis"):
        assert record[key] == pytest.approx(exact[key], rel=1e-2, abs=2e-3), key
    assert exact["kurtosis"] == pytest.approx(stats.kurtosis(values, None, False))
    for share, value in exact["quantiles"].items():
        assert record["quantiles"][share] == pytest.approx(value, abs=0.1)
    for fitted, figures in fits.items():
        for key, value in exact["fits"][fitted].items():
            assert figures[key] == pytest.approx(value, rel=2e-3, abs=5e-3), key
    if name == "apa":
        for key, truth in (("lam", 0.4), ("kappa", 0.5)):
            low, high = fits[name][f"{key}_low"], fits[name][f"{key}_high"]
            assert low < fits[name][key] < high
            assert abs(fits[name][key] - truth) < high - low


def test_interval_counts_images_not_values():
    """Images that differ from each other make the interval wider."""
    rng = np.random.default_rng(0)
    values = rng.logistic(size=(50, 400))
    shifted = values + rng.logistic(size=(50, 1))

    def width(images):
        fit = describe_histogram(histogram_of(images))["fits"]["apa"]
        return fit["mu_high"] - fit["mu_low"]

    independent = width(values)
    assert width(shifted) > 4 * independent
    # The same values, but images differ.
    assert width(np.sort(values.ravel()).reshape(50, 400)) > 4 * independent


@pytest.mark.parametrize("values", [[], [1.0, np.nan], np.arange(30.0)])
def test_too_few_values_are_described_without_fits(values):
    for record in (
        describe_values(np.asarray(values)),
        describe_histogram(histogram_of([values])),
    ):
        assert "fits" not in record and best_of(record) == ""
        assert record["too_few"]
        assert record["not_finite"] == np.isnan(values).sum()
