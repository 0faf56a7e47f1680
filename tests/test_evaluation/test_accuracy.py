"""Top-1 accuracy by groups of classes, and its bootstrap."""

import gzip
import json

import numpy as np
import pytest

from apa_mmdet.evaluation import accuracy
from apa_mmdet.evaluation.core.bootstrap import compare_runs, image_weights

COUNTS = [101, 100, 20, 19]


def predictions(labels, predicted, counts=COUNTS):
    return accuracy.make_predictions(labels, predicted, counts, "test")


@pytest.fixture
def random():
    """Predictions of 40 images, of which about half are right."""
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 4, (2, 40))
    return predictions(labels, np.where(rng.random(40) < 0.4, labels, guesses))


def test_groups_are_the_published_ones():
    #          many | medium: 100 and 20 images | few
    labels = [0, 0, 1, 1, 2, 3, 3, 3, 3]
    guesses = [0, 1, 1, 1, 0, 3, 3, 3, 0]
    found = accuracy.top1_accuracy(predictions(labels, guesses), 0)
    assert found.names == ("all", "many", "medium", "few")
    np.testing.assert_allclose(found.figures, [6 / 9, 1 / 2, 2 / 3, 3 / 4])
    assert found.resampled.shape == (0, 4)
    assert accuracy.intervals(found) == {}


def test_a_group_without_images_is_undefined():
    found = accuracy.top1_accuracy(predictions([0, 0], [0, 1]), 10)
    assert found.figures[:2].tolist() == [0.5, 0.5]
    assert np.isnan(found.figures[2:]).all()
    assert [*accuracy.intervals(found)] == ["all", "many"]


def test_a_resample_equals_repeating_the_images(random, monkeypatch):
    monkeypatch.setattr(accuracy, "_NUMBERS_AT_ONCE", 3 * 40)  # several blocks
    found = accuracy.top1_accuracy(random, 10, seed=3)
    for seed, row in zip(np.random.SeedSequence(3).spawn(10), found.resampled):
        weights = image_weights(40, seed)
        repeated = predictions(
            np.repeat(random.labels, weights), np.repeat(random.predicted, weights)
        )
        expected = accuracy.top1_accuracy(repeated, 0).figures
        np.testing.assert_allclose(row, expected)


def test_the_interval_is_that_of_a_binomial():
    right = np.arange(500) < 150
    each = accuracy.top1_accuracy(predictions(np.zeros(500, int), ~right * 1), 4000)
    low, high = accuracy.intervals(each)["all"]
    spread = 1.96 * (0.3 * 0.7 / 500) ** 0.5
    assert (low, high) == pytest.approx((0.3 - spread, 0.3 + spread), abs=0.004)


def test_runs_are_compared_by_their_names(random):
    worse = random._replace(predicted=np.where(random.labels == 3, 0, random.predicted))
    pair = [accuracy.top1_accuracy(each, 200) for each in (worse, random)]
    differences = compare_runs(pair[:1], pair[1:])
    assert [*differences] == ["all", "many", "medium", "few"]
    assert differences["few"].excludes_zero and differences["few"].value > 0
    assert differences["many"].low == differences["many"].high == 0
    other = accuracy.top1_accuracy(random._replace(labels=random.labels[::-1]), 200)
    with pytest.raises(ValueError, match="different labels"):
        compare_runs(pair[:1], [other])


def test_files(tmp_path, random):
    path = tmp_path / "folder/predictions.top1.json"
    accuracy.write_predictions(path, random)
    for found in (accuracy.read_predictions(path), _compressed(path)):
        for ours, theirs in zip(found, random):
            assert ours.dtype == np.int64 and ours.tolist() == theirs.tolist()


def _compressed(path):
    other = path.with_suffix(".json.gz")
    other.write_bytes(gzip.compress(path.read_bytes()))
    return accuracy.read_predictions(other)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not predictions of a classifier"),
        ({}, "with labels, predicted and class_counts"),
        (dict(labels=[0], predicted=[0, 1], class_counts=[5, 5]), "1 labels and 2"),
        (dict(labels=[2], predicted=[0], class_counts=[5, 5]), "labels are 2 to 2"),
        (dict(labels=[0.5], predicted=[0], class_counts=[5]), "labels is float64"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError) as error:
        accuracy.read_predictions(path)
    assert words in str(error.value) and str(error.value).startswith(str(path))
