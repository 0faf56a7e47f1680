"""LongTailAccuracy: against MMPretrain's own metric, and its errors."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("mmpretrain", reason="apa_mmdet.classification needs mmpretrain")

from mmengine.evaluator import Evaluator
from mmpretrain.evaluation import Accuracy
from mmpretrain.structures import DataSample

from apa_mmdet.classification.metric import LongTailAccuracy

COUNTS = [500, 101, 100, 20, 19, 5]


@pytest.fixture
def samples():
    """300 images of six classes, about half of them classified correctly."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 300)
    scores = torch.from_numpy(rng.random((300, 6)))
    scores[range(300), labels] += torch.from_numpy(rng.random(300))
    return [
        DataSample()
        .set_gt_label(int(label))
        .set_pred_score(s)
        .set_pred_label(s.argmax())
        for label, s in zip(labels, scores)
    ]


def evaluate(metric, samples):
    evaluator = Evaluator(metric)
    for start in range(0, len(samples), 70):
        evaluator.process(samples[start : start + 70])
    return evaluator.evaluate(len(samples))


def test_equals_mmpretrains_accuracy_on_each_group(samples):
    found = evaluate(LongTailAccuracy(COUNTS), samples)
    groups = dict(all=range(6), many=(0, 1), medium=(2, 3), few=(4, 5))
    assert set(found) == {
        f"accuracy/{name}{end}" for name in groups for end in ("", "_low", "_high")
    }
    for name, classes in groups.items():
        part = [each for each in samples if int(each.gt_label) in classes]
        (expected,) = evaluate(Accuracy(), part).values()
        assert found[f"accuracy/{name}"] == pytest.approx(expected, abs=1e-4)
        low, high = (found[f"accuracy/{name}_{end}"] for end in ("low", "high"))
        half = 196 * (expected / 100 * (1 - expected / 100) / len(part)) ** 0.5
        assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_files_and_counts_from_the_hook(samples, tmp_path):
    metric = LongTailAccuracy(num_resamples=0, outfile_prefix=str(tmp_path / "a"))
    with pytest.raises(RuntimeError, match="no class counts.*ClassFrequencyHook"):
        metric.process(None, [each.to_dict() for each in samples])
    metric.set_class_counts(np.array(COUNTS))
    found = evaluate(metric, samples)
    assert set(found) == {
        f"accuracy/{name}" for name in ("all", "many", "medium", "few")
    }
    written = json.loads((tmp_path / "a.top1.json").read_text())
    assert written["class_counts"] == COUNTS
    assert written["labels"] == [int(each.gt_label) for each in samples]
    assert written["predicted"] == [int(each.pred_label) for each in samples]
    given = LongTailAccuracy(COUNTS)
    given.set_class_counts(np.ones(6, int))
    assert evaluate(given, samples)["accuracy/few"] == found["accuracy/few"]


def test_labels_without_a_count_are_refused(samples):
    with pytest.raises(ValueError, match="labels are 0 to 5, but .* 5 classes"):
        evaluate(LongTailAccuracy(COUNTS[:5]), samples)
    with pytest.raises(ValueError, match="num_resamples=-1, expected an integer >= 0"):
        LongTailAccuracy(num_resamples=-1)
