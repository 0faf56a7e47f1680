"""A resample is evaluated as if each image were present as often as it was drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest

from apa_mmdet.evaluation.core import bootstrap
from apa_mmdet.evaluation.core.evaluate import evaluate
from apa_mmdet.evaluation.core.params import FREQUENCIES
from apa_mmdet.evaluation.files.annotations import load_ground_truth
from apa_mmdet.evaluation.files.results import read_results


def load(case):
    truth = load_ground_truth(case.truth_path)
    return truth, read_results(case.results_path, truth)


def evaluate_repeated(case, weights, folder):
    """Evaluate a case that has each image as many times as the weights say."""
    data = dict(images=[], annotations=[], categories=case.data["categories"])
    results = []
    ids = sorted(image["id"] for image in case.data["images"])
    images = {image["id"]: image for image in case.data["images"]}
    for index, image_id in enumerate(ids):
        for _ in range(weights[index]):
            new = len(data["images"]) + 1
            data["images"].append(images[image_id] | {"id": new})
            for annotation in case.data["annotations"]:
                if annotation["image_id"] == image_id:
                    number = len(data["annotations"]) + 1
                    data["annotations"].append(
                        annotation | {"id": number, "image_id": new}
                    )
            results += [
                r | {"image_id": new} for r in case.results if r["image_id"] == image_id
            ]
    return evaluate_files(folder, data, results)


def evaluate_files(folder, data, results):
    truth_path, results_path = folder / "gt.json", folder / "dt.json"
    truth_path.write_text(json.dumps(data))
    results_path.write_text(json.dumps(results))
    truth = load_ground_truth(truth_path)
    return evaluate(truth, read_results(results_path, truth))


def test_weighting_an_image_equals_repeating_it(case, tmp_path):
    compared = 0
    for number in range(101, 113, 2):  # odd seeds have no tied scores
        written = case(number)
        result = evaluate(*load(written))
        seeds = np.random.SeedSequence(number).spawn(3)
        drawn = bootstrap._resample(result, seeds)
        for seed, values in zip(seeds, drawn):
            weights = bootstrap._image_weights(result.truth.num_images, seed)
            assert weights.sum() == result.truth.num_images
            expected = evaluate_repeated(written, weights, tmp_path)
            at_50 = replace(expected, precision=expected.precision[:1])
            at_75 = replace(expected, precision=expected.precision[5:6])
            for column, each in enumerate((expected, at_50, at_75)):
                np.testing.assert_allclose(
                    values[:, column], each.class_ap(), atol=1e-9, err_msg=str(number)
                )
            compared += (expected.class_ap() > 0).any()
    assert compared > 8


def test_every_image_once_gives_the_result_itself(case):
    for number in (20, 21, 22, 23):
        result = evaluate(*load(case(number)))
        values = bootstrap._figures(result, bootstrap._resample(result, [None]))[0]
        for name, value in zip(bootstrap.FIGURES, values):
            expected = result.summary()[name]
            assert (
                np.isnan(value)
                if expected == -1
                else value == pytest.approx(expected, abs=1e-12)
            )


@pytest.fixture
def pair(tmp_path):
    """Results that detect 60 % and 90 % of the instances in 60 images."""
    rng = np.random.default_rng(0)
    data = dict(images=[], annotations=[], categories=[])
    for index, letter in enumerate(FREQUENCIES, start=1):
        data["categories"].append(dict(id=index, name=letter, frequency=letter))
    for image in range(1, 61):
        data["images"].append(
            dict(id=image, neg_category_ids=[], not_exhaustive_category_ids=[])
        )
        for category in (1, 2, 3):
            box = [0.0, 10.0 * category, *rng.uniform(20, 90, 2)]
            data["annotations"].append(
                dict(
                    id=3 * image + category,
                    image_id=image,
                    category_id=category,
                    bbox=box,
                    area=box[2] * box[3],
                )
            )
    results = []
    for share in (0.6, 0.9):
        items = [
            {name: each[name] for name in ("image_id", "category_id", "bbox")}
            | {"score": rng.random()}
            for each in data["annotations"]
        ]
        for item in items:
            if rng.random() > share:
                item["bbox"] = [200, 200, 5, 5]
        results.append(evaluate_files(tmp_path, data, items))
    return results


def test_a_result_equals_itself(pair):
    for each in bootstrap.compare(pair[0], pair[0], 50).values():
        assert (each.value, each.low, each.high) == (0, 0, 0)
        assert each.share_above == 0.5


def test_a_gain_is_detected_and_reversed_is_a_loss(pair):
    worse, better = pair
    gain = bootstrap.compare(worse, better, 300, seed=3)
    loss = bootstrap.compare(better, worse, 300, seed=3)
    assert gain["AP"].value > 0.02
    assert gain["AP"].low < gain["AP"].value < gain["AP"].high
    assert gain["AP"].low > 0 and gain["AP"].share_above > 0.95
    for name, each in gain.items():
        assert each.second == pytest.approx(better.summary()[name])
        assert each.first == pytest.approx(worse.summary()[name])
        assert loss[name].low == pytest.approx(-each.high)
        assert loss[name].high == pytest.approx(-each.low)
    assert set(gain) == {"AP", "AP50", "AP75", "APr", "APc", "APf"}
    # Sixty images say more about three classes together than about one.
    assert gain["AP"].high - gain["AP"].low < gain["APr"].high - gain["APr"].low


def test_the_result_depends_on_the_seed_and_not_on_the_processes(pair):
    expected = bootstrap.compare(*pair, 120, seed=1, num_workers=1)
    assert bootstrap.compare(*pair, 120, seed=1, num_workers=2) == expected
    assert bootstrap.compare(*pair, 120, seed=2, num_workers=1) != expected


def test_the_interval_has_the_width_known_for_a_mean_over_images(tmp_path):
    """Each of 200 images has a class of its own, detected in some of them.

    The difference is then a mean of independent zeros and ones.
    """
    classes, rng = 200, np.random.default_rng(0)
    data = dict(images=[], categories=[], annotations=[])
    for i in range(1, classes + 1):
        data["categories"].append(dict(id=i, name=str(i), frequency="f"))
        data["images"].append(
            dict(id=i, neg_category_ids=[], not_exhaustive_category_ids=[])
        )
        data["annotations"].append(
            dict(id=i, image_id=i, category_id=i, bbox=[0, 0, 9, 9], area=81)
        )
    is_detected = rng.random(classes) < 0.3
    results = [
        dict(image_id=i, category_id=i, bbox=[0, 0, 9, 9], score=1.0)
        for i in (np.flatnonzero(is_detected) + 1).tolist()
    ]
    pair = [evaluate_files(tmp_path, data, items) for items in ([], results)]
    each = bootstrap.compare(*pair, 2000)["AP"]
    share = is_detected.mean()
    assert each.value == pytest.approx(share)
    # A class is drawn or not; the detected share of the classes drawn varies with
    # 1/sqrt of their number, which is (1 - 1/e) of all.
    deviation = np.sqrt(share * (1 - share) / classes)
    deviation *= np.sqrt(1 / (1 - np.exp(-1)) - 1)
    assert each.high - each.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_incomparable_results_are_refused(pair, case):
    truth, dets = load(case(5))
    with pytest.raises(ValueError, match="different image_ids"):
        bootstrap.compare(pair[0], evaluate(truth, dets))
    at_50 = evaluate(truth, dets, iou_thrs=[0.5])
    with pytest.raises(ValueError, match="different iou_thrs"):
        bootstrap.compare(evaluate(truth, dets), at_50)
    with pytest.raises(ValueError, match="num_resamples=0"):
        bootstrap.compare(*pair, 0)
