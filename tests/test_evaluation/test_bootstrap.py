"""A resample is evaluated as if each image were present as often as it was drawn."""

import json
from dataclasses import replace
from types import SimpleNamespace

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
            weights = bootstrap.image_weights(result.truth.num_images, seed)
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


@pytest.fixture
def two_runs_each(case):
    """Four results on the same images: two runs of one method, two of another."""
    written, rng = case(103), np.random.default_rng(0)
    runs = []
    for _ in range(4):
        results = [r | {"score": rng.random()} for r in written.results]
        runs.append(SimpleNamespace(data=written.data, results=results))
    return runs[:2], runs[2:]


def test_the_pooled_difference_is_that_of_a_plain_loop(two_runs_each, tmp_path):
    number, seed = 12, 5
    resampled = [
        [
            bootstrap.resample(
                evaluate_files(tmp_path, run.data, run.results), number, seed
            )
            for run in runs
        ]
        for runs in two_runs_each
    ]
    differences = bootstrap.compare_runs(*resampled, confidence_level=0.8)
    num_images = len(two_runs_each[0][0].data["images"])
    expected = {name: [] for name in differences}
    for each in np.random.SeedSequence(seed).spawn(number):
        weights = bootstrap.image_weights(num_images, each)
        sums = []
        for runs in two_runs_each:
            summaries = [
                evaluate_repeated(r, weights, tmp_path).summary() for r in runs
            ]
            sums.append({n: sum(s[n] for s in summaries) / 2 for n in expected})
        for name, values in expected.items():
            if sums[0][name] >= 0:  # -1 where the images drawn show none of the group
                values.append(sums[1][name] - sums[0][name])
    assert max(expected["AP"]) - min(expected["AP"]) > 0.01
    for name, values in expected.items():
        found = differences[name]
        assert found.low == pytest.approx(np.percentile(values, 10), abs=1e-9)
        assert found.high == pytest.approx(np.percentile(values, 90), abs=1e-9)
        runs = [
            [r.figures[bootstrap.FIGURES.index(name)] for r in s] for s in resampled
        ]
        assert found.value == pytest.approx(np.mean(runs[1]) - np.mean(runs[0]))


def test_drawing_the_runs_adds_their_spread(pair):
    each = bootstrap.resample(pair[0], 1)
    runs = [
        each._replace(figures=np.full(6, value), resampled=np.full((20_000, 6), value))
        for value in (0.3, 0.3, 0.3, 0.3, 0.4, 0.5)
    ]
    fixed = bootstrap.compare_runs(runs[:3], runs[3:])["AP"]
    drawn = bootstrap.compare_runs(runs[:3], runs[3:], draw_runs=True)["AP"]
    assert fixed.value == drawn.value == pytest.approx(0.1)
    assert fixed.low == fixed.high == pytest.approx(0.1)
    # The pair without a difference is drawn three times in 1 of 27.
    assert (drawn.low, drawn.high) == pytest.approx((0, 0.2))
    assert drawn.share_above == pytest.approx(1 - 1 / 54, abs=0.005)
    assert fixed.excludes_zero and not drawn.excludes_zero


def test_incomparable_runs_are_refused(pair):
    runs = [bootstrap.resample(result, 3) for result in pair]
    with pytest.raises(ValueError, match="2 and 1 runs: expected as many of both"):
        bootstrap.compare_runs(runs, runs[:1])
    with pytest.raises(ValueError, match="another seed or number"):
        bootstrap.compare_runs(runs[:1], [bootstrap.resample(pair[1], 3, seed=1)])
    with pytest.raises(ValueError, match="confidence_level=95: expected a number"):
        bootstrap.compare_runs(runs[:1], runs[1:], 95)


def test_incomparable_results_are_refused(pair, case):
    truth, dets = load(case(5))
    with pytest.raises(ValueError, match="different image_ids"):
        bootstrap.compare(pair[0], evaluate(truth, dets))
    at_50 = evaluate(truth, dets, iou_thrs=[0.5])
    with pytest.raises(ValueError, match="different iou_thrs"):
        bootstrap.compare(evaluate(truth, dets), at_50)
    with pytest.raises(ValueError, match="num_resamples=0"):
        bootstrap.compare(*pair, 0)
