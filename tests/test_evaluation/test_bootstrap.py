"""A draw of images is evaluated as if the images were there that often."""

import json
from dataclasses import replace

import numpy as np
import pytest

from apa_mmdet.evaluation import bootstrap
from apa_mmdet.evaluation.ground_truth import FREQUENCIES, load_ground_truth
from apa_mmdet.evaluation.lvis_eval import evaluate
from apa_mmdet.evaluation.results_file import read_results


def load(case):
    truth = load_ground_truth(case.truth)
    return truth, read_results(case.found, truth)


def repeated(case, weight, folder):
    """The files of a case whose images are there as often as the weights say."""
    data = dict(images=[], annotations=[], categories=case.data["categories"])
    results = []
    ids = sorted(image["id"] for image in case.data["images"])
    images = {image["id"]: image for image in case.data["images"]}
    for index, image_id in enumerate(ids):
        for _ in range(weight[index]):
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
    truth, found = folder / "repeated_gt.json", folder / "repeated_dt.json"
    truth.write_text(json.dumps(data))
    found.write_text(json.dumps(results))
    truth = load_ground_truth(truth)
    return evaluate(truth, read_results(found, truth))


def test_weighted_images_are_repeated_images(case, tmp_path):
    compared = 0
    for number in range(101, 113, 2):  # odd cases have no ties in score
        written = case(number)
        result = evaluate(*load(written))
        seeds = np.random.SeedSequence(number).spawn(3)
        drawn = bootstrap._draw(result, seeds)
        for seed, values in zip(seeds, drawn):
            weight = bootstrap._weights(result.truth.num_images, seed)
            assert weight.sum() == result.truth.num_images
            expected = repeated(written, weight, tmp_path)
            at_50 = replace(expected, precision=expected.precision[:1])
            at_75 = replace(expected, precision=expected.precision[5:6])
            for column, each in enumerate((expected, at_50, at_75)):
                np.testing.assert_allclose(
                    values[:, column], each.class_ap(), atol=1e-9, err_msg=str(number)
                )
            compared += (expected.class_ap() > 0).any()
    assert compared > 8


def test_all_images_once_give_the_result_itself(case):
    for number in (20, 21, 22, 23):
        result = evaluate(*load(case(number)))
        values = bootstrap._group_means(result, bootstrap._draw(result, [None]))[0]
        for name, value in zip(bootstrap.GROUPS, values):
            expected = result.summary()[name]
            assert (
                np.isnan(value)
                if expected == -1
                else value == pytest.approx(expected, abs=1e-12)
            )


@pytest.fixture
def pair(tmp_path):
    """Results that find six and nine of ten instances, in 60 images."""
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
    path, found = tmp_path / "gt.json", tmp_path / "dt.json"
    path.write_text(json.dumps(data))
    truth = load_ground_truth(path)
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
        found.write_text(json.dumps(items))
        results.append(evaluate(truth, read_results(found, truth)))
    return results


def test_a_result_does_not_differ_from_itself(pair):
    for each in bootstrap.compare(pair[0], pair[0], 50).values():
        assert (each.value, each.low, each.high) == (0, 0, 0)
        assert each.share_above == 0.5


def test_a_gain_is_seen_and_its_opposite_is_a_loss(pair):
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
    # Sixty images tell more of three classes together than of one.
    assert gain["AP"].high - gain["AP"].low < gain["APr"].high - gain["APr"].low


def test_processes_change_nothing_and_seeds_do(pair):
    alone = bootstrap.compare(*pair, 120, seed=1, num_workers=1)
    assert bootstrap.compare(*pair, 120, seed=1, num_workers=2) == alone
    assert bootstrap.compare(*pair, 120, seed=2, num_workers=1) != alone


def test_interval_is_as_wide_as_the_mean_of_images_says(tmp_path):
    """Where AP is a mean over images, the interval is known.

    One class for each of 200 images, found in some: the difference is a mean of
    independent 0 and 1.
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
    is_found = rng.random(classes) < 0.3
    results = [
        dict(image_id=i, category_id=i, bbox=[0, 0, 9, 9], score=1.0)
        for i in (np.flatnonzero(is_found) + 1).tolist()
    ]
    path, found = tmp_path / "gt.json", tmp_path / "dt.json"
    path.write_text(json.dumps(data))
    truth = load_ground_truth(path)
    sides = []
    for items in ([], results):
        found.write_text(json.dumps(items))
        sides.append(evaluate(truth, read_results(found, truth)))
    each = bootstrap.compare(*sides, 2000)["AP"]
    assert each.value == pytest.approx(is_found.mean())
    # Classes are drawn or not; of those drawn the share found varies with 1/sqrt of
    # their number, which is (1 - 1/e) of all.
    deviation = np.sqrt(is_found.mean() * (1 - is_found.mean()) / classes)
    deviation *= np.sqrt(1 / (1 - np.exp(-1)) - 1)
    assert each.high - each.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_results_that_cannot_be_compared(pair, case):
    truth, found = load(case(5))
    with pytest.raises(ValueError, match="different image_ids"):
        bootstrap.compare(pair[0], evaluate(truth, found))
    part = evaluate(truth, found, iou_thrs=[0.5])
    with pytest.raises(ValueError, match="different iou_thrs"):
        bootstrap.compare(evaluate(truth, found), part)
    with pytest.raises(ValueError, match="num_draws=0"):
        bootstrap.compare(*pair, 0)
