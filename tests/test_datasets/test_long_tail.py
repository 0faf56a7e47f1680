"""How many images a long tail keeps of each class, and which."""

import numpy as np
import pytest

from apa_mmdet.datasets.long_tail import draw, exponential_counts, pareto_counts


def test_exponential_counts_are_those_of_cifar100_lt():
    # The sizes of CIFAR100-LT that the literature gives, for 50,000 images.
    for ratio, total in ((10, 19573), (50, 12608), (100, 10847), (200, 9502)):
        counts = exponential_counts(100, 500, ratio)
        assert counts.sum() == total
        assert counts[0] == 500 and counts[-1] == max(500 // ratio, 1)
        assert (np.diff(counts) <= 0).all()


def test_exponential_counts_follow_the_formula():
    counts = exponential_counts(10, 1000, 50)
    for label, count in enumerate(counts):
        assert count == int(1000 * 50 ** (-label / 9) + 1e-6)
    assert exponential_counts(1, 7, 100).tolist() == [7]
    assert exponential_counts(3, 2, 100).tolist() == [2, 1, 1]  # none without images


def test_pareto_counts_resemble_imagenet_lt():
    counts = pareto_counts(1000, 1280, 5, 6)
    assert (counts[0], counts[-1]) == (1280, 5)
    assert (np.diff(counts) <= 0).all()
    # The published list has 115,846 images; 385, 479 and 136 classes are many, medium
    # and few.
    assert counts.sum() == pytest.approx(115_846, rel=0.12)
    few, many = (counts < 20).sum(), (counts > 100).sum()
    assert many == pytest.approx(385, rel=0.12) and few == pytest.approx(136, rel=0.25)
    # Without the scaling they are quantiles: a share p exceeds q with p = q ** -alpha.
    heights = (counts - 5) / 1275
    q = ((np.array([0.5, 100.5, 999.5])) / 1000) ** (-1 / 6)
    assert heights[100] == pytest.approx((q[1] - q[2]) / (q[0] - q[2]), abs=1e-3)


def test_draws_sort_by_class_and_nest():
    labels = np.random.default_rng(0).integers(0, 3, 60)
    more = draw(labels, [10, 8, 6], seed=4)
    fewer = draw(labels, [9, 8, 1], seed=4)
    assert np.bincount(labels[more]).tolist() == [10, 8, 6]
    assert (np.diff(labels[more]) >= 0).all()
    for label in range(3):  # in the order of the data set within a class
        assert (np.diff(more[labels[more] == label]) > 0).all()
    assert set(fewer) < set(more) and len(set(more)) == 24
    assert draw(labels, [10, 8, 6], seed=4).tolist() == more.tolist()
    assert draw(labels, [10, 8, 6], seed=5).tolist() != more.tolist()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(
        ValueError, match=r"label 1 \('dog'\) has 1 images.* takes 2; .* from 4 to 2"
    ):
        draw([0, 0, 0, 0, 1], [4, 2], 0, ["cat", "dog"])
    with pytest.raises(ValueError, match="labels are 0 to 2, but .* 2 classes"):
        draw([0, 2], [1, 1], 0)
    with pytest.raises(ValueError, match="seed=-1, expected an integer >= 0"):
        draw([0], [1], -1)
    with pytest.raises(ValueError, match="ratio=0.5, expected a finite number >= 1"):
        exponential_counts(3, 5, 0.5)
    with pytest.raises(ValueError, match="max_count=3, expected an integer >= 5"):
        pareto_counts(3, 3, 5)
    with pytest.raises(ValueError, match="alpha=0, expected a finite number > 0"):
        pareto_counts(3, 10, 5, 0)
