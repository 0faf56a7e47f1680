"""The evaluation gives lvis-api's numbers, every one of them."""

from collections import defaultdict

import numpy as np
import pytest

from apa_mmdet.evaluation.core.detections import Detections
from apa_mmdet.evaluation.core.evaluate import evaluate
from apa_mmdet.evaluation.core.proposals import proposal_recall, proposal_recall_fast
from apa_mmdet.evaluation.core.selection import select_judged_fixed, top_per_group
from apa_mmdet.evaluation.files.annotations import load_ground_truth
from apa_mmdet.evaluation.files.results import read_results


def assert_equal(result, expected, message=""):
    np.testing.assert_allclose(
        result.precision, expected.precision, rtol=0, atol=1e-9, err_msg=message
    )
    np.testing.assert_allclose(
        result.recall, expected.recall, rtol=0, atol=1e-9, err_msg=message
    )
    figures = result.summary()
    assert list(figures) == list(expected.figures), message
    for name, value in expected.figures.items():
        assert figures[name] == pytest.approx(value, abs=1e-9), (message, name)


def load(case, iou_type="bbox"):
    with_masks = iou_type == "segm"
    truth = load_ground_truth(case.truth_path, with_masks)
    return truth, read_results(case.results_path, truth, with_masks)


def compare(case, lvis_api, iou_type, **options):
    result = evaluate(*load(case, iou_type), iou_type, **options)
    expected = lvis_api(case.truth_path, case.results, iou_type, **options)
    assert_equal(result, expected, f"seed {case.seed}")
    return result


# ------------------------------------------------------------- against lvis-api


@pytest.mark.parametrize("block", range(10))
def test_boxes_equal_lvis_api(case, lvis_api, block):
    measured = 0
    for seed in range(block * 20, block * 20 + 20):
        written = case(seed)
        if not written.results:  # lvis-api refuses an empty list
            continue
        max_dets = (300, 300, 12, 3)[seed % 4]
        result = compare(written, lvis_api, "bbox", max_dets=max_dets)
        measured += (result.precision > 0).any()
    assert measured > 12  # the cases are not trivial


@pytest.mark.parametrize("block", range(6))
def test_masks_equal_lvis_api(case, lvis_api, block):
    measured = 0
    for seed in range(1000 + block * 20, 1000 + block * 20 + 20):
        written = case(seed, with_masks=True)
        if not written.results:
            continue
        max_dets = (300, 300, 12, 3)[seed % 4]
        result = compare(written, lvis_api, "segm", max_dets=max_dets)
        measured += (result.precision > 0).any()
    assert measured > 12


@pytest.mark.slow
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_a_thousand_more_cases(case, lvis_api, iou_type):
    for seed in range(5000, 6000):
        written = case(seed, with_masks=iou_type == "segm")
        if written.results:
            max_dets = (300, 12, 5, 3)[seed % 4]
            compare(written, lvis_api, iou_type, max_dets=max_dets)


def test_the_cases_cover_what_makes_matching_hard(case):
    """Otherwise the comparisons above would prove little."""
    seen = defaultdict(int)
    for seed in range(40):
        written = case(seed)
        data, results = written.data, written.results
        truth, dets = load(written)
        pair = truth.pairs(truth.image_index, truth.class_index)
        seen["crowded pairs"] += np.unique(pair, return_counts=True)[1].max(initial=0)
        scores = [(r["category_id"], r["score"]) for r in results]
        seen["tied scores"] += len(scores) - len({*scores})
        shown = {ann["image_id"] for ann in data["annotations"]}
        seen["images without annotations"] += len(data["images"]) - len(shown)
        seen["classes without annotations"] += truth.num_classes - len(
            np.unique(truth.class_index)
        )
        seen["not exhaustive"] += len(truth.not_exhaustive_pairs)
        seen["negative"] += len(truth.judged_pairs) - len(np.unique(pair))
        judged = truth.is_judged(truth.pairs(dets.image_index, dets.class_index))
        seen["not judged"] += (~judged).sum()
        seen["ignored"] += truth.ignore.sum()
        seen["without area"] += sum(ann["area"] == 0 for ann in data["annotations"])
        seen["gaps in ids"] += np.diff(truth.image_ids).max(initial=0) > 1
        for name, low, high in (
            ("small", 0, 32),
            ("medium", 32, 96),
            ("large", 96, 1e5),
        ):
            seen[name] += ((truth.areas > low**2) & (truth.areas < high**2)).sum()
    assert len(seen) == 13
    assert min(seen.values()) >= 10, dict(seen)


def test_many_detections_of_one_class_in_one_image(case, lvis_api):
    """300 detections of one pair take as many rounds of matching."""
    rng = np.random.default_rng(0)

    def crowd(data, results):
        image, category = data["images"][0]["id"], data["categories"][0]["id"]
        data["annotations"][:] = [
            dict(
                id=i + 1,
                image_id=image,
                category_id=category,
                bbox=[float(i % 10) * 5, float(i // 10) * 5, 40.0, 40.0],
                area=1600.0 if i % 3 else 900.0,
                segmentation=[[0, 0, 9, 0, 9, 9]],
            )
            for i in range(60)
        ]
        results[:] = [
            dict(
                image_id=image,
                category_id=category,
                score=float(rng.integers(0, 20)) / 20,
                bbox=[*rng.integers(0, 60, 2).astype(float), 40.0, 40.0],
            )
            for _ in range(400)
        ]

    result = compare(case(7, change=crowd), lvis_api, "bbox")
    assert 0 < result.summary()["AP"] < 1


@pytest.mark.parametrize("iou_thrs", [[0.3], [0.5, 0.75], [0.05, 0.6, 0.75, 1.0]])
def test_other_thresholds(case, lvis_api, iou_thrs):
    for seed in (2, 3, 4):
        result = compare(case(seed), lvis_api, "bbox", iou_thrs=iou_thrs)
        has_50 = 0.5 in iou_thrs
        assert (result.summary()["AP50"] >= 0) == has_50


def test_several_processes_give_the_same_result(case):
    truth, dets = load(case(1004, with_masks=True), "segm")
    single = evaluate(truth, dets, "segm", num_workers=1)
    several = evaluate(truth, dets, "segm", num_workers=3)
    np.testing.assert_array_equal(several.precision, single.precision)
    assert (single.precision > 0).any()


def test_the_order_of_images_in_the_file_does_not_matter(case):
    written = case(11)
    truth, dets = load(written)
    by_image = np.argsort(-dets.image_index, kind="stable")
    before, after = (evaluate(truth, each) for each in (dets, dets.take(by_image)))
    np.testing.assert_array_equal(after.precision, before.precision)


def test_no_detections_at_all(case):
    truth = load_ground_truth(case(5).truth_path, with_masks=True)
    for iou_type in ("bbox", "segm"):
        result = evaluate(truth, Detections.empty(), iou_type)
        annotated = result.ranked.num_annotations > 0
        assert (result.precision[:, :, annotated] == 0).all()
        assert (result.precision[:, :, ~annotated] == -1).all()
        assert result.summary()["AP"] == 0


def test_image_subset(case, lvis_api):
    for seed in (6, 8, 15):
        written = case(seed)
        truth, dets = load(written)
        ids = truth.image_ids[::2]
        part = truth.subset(ids)
        result = evaluate(part, dets.subset(truth, part))
        results = [r for r in written.results if r["image_id"] in ids]
        if not results:
            continue
        expected = lvis_api(written.truth_path, results, "bbox", img_ids=ids.tolist())
        assert_equal(result, expected)


def test_bad_arguments_are_refused(case):
    truth, dets = load(case(5))
    with pytest.raises(ValueError, match="iou_type='mask': expected 'bbox' or 'segm'"):
        evaluate(truth, dets, "mask")
    with pytest.raises(ValueError, match="annotations have no masks; load them with"):
        evaluate(truth, dets, "segm")
    for bad in ([], [0.5, 50], [0], [[0.5]]):
        with pytest.raises(ValueError, match="iou_thrs=.*between|iou_thrs=.*above 0"):
            evaluate(truth, dets, iou_thrs=bad)
    with pytest.raises(ValueError, match="num_workers=0"):
        evaluate(truth, dets, num_workers=0)
    with pytest.raises(ValueError, match=r"1 of 2 ids are not.*first: \[-5\]"):
        truth.subset([-5, truth.image_ids[0]])


# ---------------------------------------------------------------------- Fixed AP


def slow_ap(data, results, limit, thresholds):
    """Compute Fixed AP of each class step by step in plain Python."""
    order = {i: n for n, i in enumerate(sorted(im["id"] for im in data["images"]))}
    images = {image["id"]: image for image in data["images"]}
    ap = {}
    for category in sorted(c["id"] for c in data["categories"]):
        truth = [
            a
            for a in data["annotations"]
            if a["category_id"] == category and a["area"] > 0
        ]
        shown_in = {a["image_id"] for a in truth}
        dets = [r for r in results if r["category_id"] == category]
        dets.sort(key=lambda r: (-r["score"], order[r["image_id"]]))
        dets = [
            r
            for r in dets[:limit]
            if r["image_id"] in shown_in
            or category in images[r["image_id"]]["neg_category_ids"]
        ]
        dets = [r for r in dets if r["bbox"][2] * r["bbox"][3] > 0]
        num_annotations = sum(not a.get("ignore") for a in truth)
        if not num_annotations:
            continue
        values = []
        for threshold in thresholds:
            taken, outcome = set(), []
            for r in dets:
                here = [a for a in truth if a["image_id"] == r["image_id"]]
                best, best_iou = None, threshold
                for ignored in (False, True):
                    if best is not None:
                        break
                    for a in here:
                        if bool(a.get("ignore")) == ignored and a["id"] not in taken:
                            iou = slow_iou(a["bbox"], r["bbox"])
                            if iou >= best_iou:
                                best, best_iou = a, iou
                if best is not None:
                    taken.add(best["id"])
                    if not best.get("ignore"):
                        outcome.append(True)
                elif (
                    category not in images[r["image_id"]]["not_exhaustive_category_ids"]
                ):
                    outcome.append(False)
            precisions = [
                (sum(outcome[: n + 1]), sum(outcome[: n + 1]) / (n + 1))
                for n in range(len(outcome))
            ]
            at_recalls = [
                max((p for tp, p in precisions if tp / num_annotations >= r), default=0)
                for r in np.linspace(0, 1, 101)
            ]
            values.append(np.mean(at_recalls))
        ap[category] = np.mean(values)
    return ap


def slow_iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


@pytest.mark.parametrize("limit", [2, 5, 10_000])
def test_fixed_ap_equals_a_slow_computation(case, limit):
    thresholds, cut, compared = np.linspace(0.5, 0.95, 10), 0, 0
    for seed in range(40, 52):
        written = case(seed)
        truth, dets = load(written)
        result = evaluate(truth, dets, max_dets_per_class=limit)
        expected = slow_ap(written.data, written.results, limit, thresholds)
        ap = result.class_ap()
        annotated = {int(truth.class_ids[i]) for i in np.flatnonzero(np.isfinite(ap))}
        assert annotated == {*expected}
        for category, value in expected.items():
            index = int(np.searchsorted(truth.class_ids, category))
            assert ap[index] == pytest.approx(value, abs=1e-9), (seed, category)
            compared += 1
        if expected:
            mean = np.mean(list(expected.values()))
            assert result.summary()["FixedAP"] == pytest.approx(mean, abs=1e-9)
        cut += np.bincount(dets.class_index).max(initial=0) > limit
    assert compared > 20
    assert (cut > 6) == (limit < 10)


def test_fixed_ap_equals_lvis_api_without_its_limit(case, lvis_api):
    for seed in (60, 61, 62):
        written = case(seed)
        truth, dets = load(written)
        result = evaluate(truth, dets, max_dets_per_class=10_000)
        expected = lvis_api(written.truth_path, written.results, "bbox", max_dets=-1)
        np.testing.assert_allclose(result.precision, expected.precision, atol=1e-9)
        names = [name for name in expected.figures if name.startswith("AP")]
        assert list(result.summary()) == [f"Fixed{name}" for name in names]


def test_fixed_ap_has_no_limit_for_an_image(case):
    """With 400 detections of two classes in one image, AP loses the weaker class."""

    def change(data, results):
        image = data["images"][0]
        first, second = (c["id"] for c in data["categories"][:2])
        image["neg_category_ids"] = []
        data["annotations"][:] = [
            dict(id=i, image_id=image["id"], category_id=c, bbox=[0, 0, 10, 10],
                 area=100, segmentation=[[0, 0, 9, 0, 9, 9]])
            for i, c in ((1, first), (2, second))
        ]  # fmt: skip
        results[:] = [
            dict(image_id=image["id"], category_id=c, bbox=[0, 0, 10, 10], score=s)
            for c, s, n in ((first, 0.9, 399), (second, 0.1, 1))
            for _ in range(n)
        ]

    truth, dets = load(case(9, change=change))
    assert evaluate(truth, dets).summary()["AP"] == pytest.approx(0.5)
    fixed = evaluate(truth, dets, max_dets_per_class=10_000).summary()
    assert fixed["FixedAP"] == pytest.approx(1)


def test_fixed_ap_breaks_ties_by_image():
    class AllJudged:
        num_classes = 1

        def pairs(self, image_index, class_index):
            return image_index

        def is_judged(self, pairs):
            return np.ones(len(pairs), bool)

    image = np.array([3, 1, 2, 1, 0])
    score = np.array([0.5, 0.5, 0.5, 0.5, 0.4])
    dets = Detections(image, np.zeros(5, int), score, np.zeros((5, 4)))
    kept = select_judged_fixed(AllJudged(), dets, 3)
    assert kept.tolist() == [1, 2, 3]


def test_top_per_group():
    rng = np.random.default_rng(0)
    for _ in range(50):
        group = rng.integers(0, 6, 60)
        score = rng.integers(0, 8, 60) / 8
        limit = int(rng.integers(0, 15))
        expected = []
        for each in range(6):
            members = [i for i in range(60) if group[i] == each]
            expected += sorted(members, key=lambda i: -score[i])[:limit]
        assert top_per_group(group, score, limit).tolist() == sorted(expected)


# -------------------------------------------------------------------- proposals


def test_proposal_recall_equals_lvis_api_with_one_class(case, lvis_api):
    """lvis-api's own use_cats=0 looks for a class of id -1, which does not exist."""
    thresholds = np.linspace(0.5, 0.95, 10)
    differs = 0
    for seed in range(71, 95, 2):
        written = case(seed)
        if not written.results or not written.data["annotations"]:
            continue
        truth, dets = load(written)
        recalls = proposal_recall(truth, dets, [2, 5, 300], thresholds)
        (only, *_) = (category["id"] for category in written.data["categories"])

        def one_class(data, results, only=only):
            for item in data["annotations"] + results:
                item["category_id"] = only
            for image in data["images"]:
                image["neg_category_ids"] = [only]

        relabelled = case(seed, change=one_class)
        for number in (2, 5, 300):
            expected = lvis_api(
                relabelled.truth_path, relabelled.results, "bbox", max_dets=number
            )
            for name in ("AR", "ARs", "ARm", "ARl"):
                key = f"{name}@{number}"
                assert recalls[key] == pytest.approx(expected.figures[key], abs=1e-9)
        differs += recalls["AR@2"] < recalls["AR@300"]
    assert differs > 4


def test_fast_proposal_recall_pairs_the_best_first(case):
    """A slow version of what mmdet's eval_recalls does."""
    thresholds = np.array([0.3, 0.5, 0.7])
    for seed in range(90, 96):
        written = case(seed)
        truth, dets = load(written)
        recalls = proposal_recall_fast(truth, dets, [3, 100], thresholds)
        for number in (3, 100):
            left = []
            for image in range(truth.num_images):
                boxes = truth.boxes[truth.image_index == image].tolist()
                here = np.flatnonzero(dets.image_index == image)
                here = here[np.argsort(-dets.scores[here], kind="stable")][:number]
                pairs = [
                    (slow_iou(box, dets.boxes[d].tolist()), g, d)
                    for g, box in enumerate(boxes)
                    for d in here
                ]
                best = [0.0] * len(boxes)
                while pairs:
                    iou, g, d = max(pairs)
                    best[g] = iou
                    pairs = [p for p in pairs if p[1] != g and p[2] != d]
                left += best
            expected = np.mean([[iou >= t for t in thresholds] for iou in left])
            assert recalls[f"AR@{number}"] == pytest.approx(expected, abs=1e-9)
