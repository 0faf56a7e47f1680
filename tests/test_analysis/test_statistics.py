"""Histograms and reservoirs: what they count, and that order makes no difference."""

import numpy as np
import pytest

from apa_mmdet.analysis.statistics import Histogram, Reservoir


def filled(blocks, num_replicates=3, **options):
    histogram = Histogram(num_replicates, **options)
    for number, values in blocks:
        weights = np.random.default_rng(number).poisson(1, 1 + num_replicates)
        weights[0] = 1
        histogram.add(values, weights)
    return histogram


def assert_same(one, other):
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.edges, other.edges)
    assert one.num_not_finite == other.num_not_finite


BLOCKS = [
    (number, np.random.default_rng(number).normal(shift, scale, 400))
    for number, (shift, scale) in enumerate(
        [(-2, 1e-3), (-2, 1e-3), (0, 30), (5, 1), (1e5, 1), (-1e-7, 1e-9)]
    )
]


@pytest.mark.parametrize("max_bins", [64, 2048])
def test_order_and_processes_make_no_difference(max_bins):
    one = filled(BLOCKS, max_bins=max_bins)
    assert_same(filled(BLOCKS[::-1], max_bins=max_bins), one)
    for cut in range(len(BLOCKS) + 1):
        merged = filled(BLOCKS[:cut], max_bins=max_bins)
        merged.merge(filled(BLOCKS[cut:], max_bins=max_bins))
        assert_same(merged, one)
    assert one.counts.shape[1] <= max_bins


def test_counts_are_those_of_numpy():
    histogram = filled(BLOCKS)
    values = np.concatenate([values for _, values in BLOCKS])
    expected, _ = np.histogram(values, histogram.edges)
    np.testing.assert_array_equal(histogram.counts[0], expected)
    assert histogram.total == len(values)


def test_replicates_count_blocks_at_random():
    rows = filled(BLOCKS).counts.sum(axis=1)
    times = [np.random.default_rng(number).poisson(1, 4) for number, _ in BLOCKS]
    np.testing.assert_array_equal(rows[1:], 400 * np.sum(times, axis=0)[1:])


@pytest.mark.parametrize("shift, scale", [(0, 1), (-2, 1e-3), (300, 5)])
def test_bins_are_narrow_where_the_values_are(shift, scale):
    values = np.random.default_rng(0).normal(shift, scale, 100_000)
    histogram = filled([(0, values)])
    width = np.diff(histogram.edges)
    assert width.max() < scale * 0.03
    mean = np.average(histogram.centers, weights=histogram.counts[0])
    assert mean == pytest.approx(values.mean(), abs=1e-3 * scale)
    shares = [0, 0.01, 0.5, 0.99, 1]
    expected = np.quantile(values, shares)
    np.testing.assert_allclose(
        histogram.quantiles(shares), expected, atol=scale * 0.03, rtol=0
    )


def test_one_value_and_not_finite_values():
    histogram = filled([(0, [np.nan, -2.0, np.inf, -2.0])])
    assert (histogram.total, histogram.num_not_finite) == (2, 2)
    np.testing.assert_allclose(histogram.quantiles([0.5]), [-2], rtol=1e-9)


def test_empty_histograms_merge():
    one, other = Histogram(3), filled(BLOCKS[:1])
    one.merge(other)
    one.merge(Histogram(3))
    assert_same(one, filled(BLOCKS[:1]))
    assert Histogram(3).total == 0


def reservoir(blocks, size=20):
    result = Reservoir(3, size)
    for number, values in blocks:
        rng = np.random.default_rng(number)
        series = rng.integers(0, 2, len(values))
        result.add(series, rng.random(len(values)), values)
    return result


def test_sample_does_not_depend_on_order_or_processes():
    one = reservoir(BLOCKS)
    backwards, merged = reservoir(BLOCKS[::-1]), reservoir(BLOCKS[:2])
    merged.merge(reservoir(BLOCKS[2:]))
    for other in (backwards, merged):
        np.testing.assert_array_equal(one.seen, other.seen)
        for series in range(3):
            np.testing.assert_array_equal(
                one.values_of(series), other.values_of(series)
            )
    assert one.seen.sum() == 2400 and one.seen[2] == 0
    assert [len(one.values_of(series)) for series in range(3)] == [20, 20, 0]


def test_sample_keeps_all_values_of_a_short_series():
    result = Reservoir(2, 10)
    result.add(np.array([1, 1, 0]), np.array([0.5, 0.2, 0.9]), np.array([1.0, 2, 3]))
    np.testing.assert_array_equal(result.values_of(1), [2, 1])
    np.testing.assert_array_equal(result.values_of(0), [3])


def test_sample_is_uniform():
    values = np.arange(50_000)
    result = Reservoir(1, 2_000)
    for number, part in enumerate(np.split(values, 50)):
        priorities = np.random.default_rng(number).random(len(part))
        result.add(np.zeros(len(part), int), priorities, part)
    sample = result.values_of(0)
    assert len(np.unique(sample)) == 2_000
    # The mean of 2,000 draws has a standard deviation of 323.
    assert abs(sample.mean() - 25_000) < 4 * 323


def test_memory_is_bounded_for_many_classes():
    result = Reservoir(1_203, 16)
    series = np.tile(np.arange(1_203), 50)
    for number in range(20):
        rng = np.random.default_rng(number)
        result.add(series, rng.random(len(series)), rng.normal(size=len(series)))
        held = len(result._kept[0]) + sum(len(p[0]) for p in result._pending)
        assert held <= 2 * 1_203 * 16 + len(series)
    assert (result.seen == 1_000).all()
