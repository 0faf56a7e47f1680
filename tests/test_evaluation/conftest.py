"""Generated LVIS data sets with results, and lvis-api's figures for them."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as mask_utils

import apa_mmdet  # noqa: F401  repairs lvis-api for current numpy


def _mask(rng, box, height, width):
    """An ellipse, or a rectangle without one corner, that fills the box."""
    y, x = np.mgrid[:height, :width]
    left, top, w, h = box
    u, v = (x + 0.5 - left) / max(w, 1), (y + 0.5 - top) / max(h, 1)
    if rng.random() < 0.5:
        return ((u - 0.5) ** 2 + (v - 0.5) ** 2 <= 0.25).astype(np.uint8)
    corner = (u > 0.6) & (v > 0.7)
    return ((u >= 0) & (u < 1) & (v >= 0) & (v < 1) & ~corner).astype(np.uint8)


def _rle(bitmap):
    rle = mask_utils.encode(np.asfortranarray(bitmap))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _polygon(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x + w / 3, y + h, x, y + h / 2]]


def _box(rng, height, width, is_coarse):
    # From a few pixels to nearly the whole image, so that every area range occurs.
    size = np.exp(rng.uniform(np.log(4), np.log(min(height, width) * 0.9), 2))
    corner = rng.uniform(0, 1, 2) * (np.array([width, height]) - size)
    box = np.concatenate([corner, size])
    return (np.rint(box).clip(1) if is_coarse else np.round(box, 3)).tolist()


def make_case(seed, with_masks=False):
    """Return a small data set and results with as many special cases as possible.

    Even seeds have integer boxes and scores of one digit, so that IoUs and scores tie.
    """
    rng = np.random.default_rng(seed)
    is_coarse = seed % 2 == 0
    num_images, num_classes = rng.integers(1, 9), rng.integers(3, 10)
    image_ids = rng.choice(10_000, num_images, replace=False) + 1
    class_ids = rng.choice(2_000, num_classes, replace=False) + 1
    categories = [
        dict(
            id=int(i),
            name=f"class_{i}",
            frequency="rcf"[k % 3],
            image_count=int(rng.integers(1, 300)),
            instance_count=1,
        )
        for k, i in enumerate(class_ids)
    ]
    images, annotations, results = [], [], []
    # The last class is never annotated.
    shown = class_ids[: max(1, num_classes - 1)]
    annotation_ids = iter((rng.permutation(5_000) + 1).tolist())
    for index, image_id in enumerate(image_ids.tolist()):
        side = (24, 60) if with_masks else (100, 400)
        height, width = (int(n) for n in rng.integers(*side, 2))
        here = rng.choice(shown, min(len(shown), rng.integers(0, 4)), replace=False)
        boxes = []
        for class_id in here.tolist():
            crowd = rng.integers(1, 9 if rng.random() < 0.3 else 3)
            for _ in range(crowd):
                box = _box(rng, height, width, is_coarse)
                if boxes and rng.random() < 0.3:  # the same box again
                    box = list(boxes[-1][1])
                boxes.append((class_id, box))
                bitmap = _mask(rng, box, height, width) if with_masks else None
                is_rle = with_masks and rng.random() < 0.5 and bitmap.any()
                annotation = dict(
                    id=next(annotation_ids),
                    image_id=image_id,
                    category_id=class_id,
                    bbox=box,
                    area=float(bitmap.sum()) if is_rle else box[2] * box[3],
                    segmentation=_rle(bitmap) if is_rle else _polygon(box),
                )
                if rng.random() < 0.05:
                    annotation["ignore"] = 1
                if rng.random() < 0.03:
                    annotation["area"] = 0.0
                annotations.append(annotation)
        absent = [int(c) for c in class_ids if c not in here]
        some = rng.random(len(absent)) < 0.3
        images.append(
            dict(
                id=image_id,
                height=height,
                width=width,
                neg_category_ids=[c for c, keep in zip(absent, some) if keep],
                not_exhaustive_category_ids=[
                    int(c) for c in class_ids if rng.random() < 0.15
                ],
            )
        )
        if index % 5 == 4:
            continue  # no detections in this image
        for class_id, box in boxes:
            for _ in range(rng.integers(0, 4)):
                jitter = np.exp(rng.normal(0, 0.1, 4))
                near = (np.array(box) * jitter).round(0 if is_coarse else 3)
                if rng.random() < 0.03:
                    near[rng.integers(2, 4)] = 0
                results.append((image_id, class_id, near.clip(0).tolist()))
        for _ in range(rng.integers(0, 12)):
            class_id = int(rng.choice(class_ids))
            results.append((image_id, class_id, _box(rng, height, width, is_coarse)))
    digits = 1 if is_coarse else 6
    items = []
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    for image_id, class_id, box in results:
        item = dict(
            image_id=image_id,
            category_id=class_id,
            bbox=box,
            score=round(float(rng.random()), digits),
        )
        if with_masks:
            item["segmentation"] = _rle(_mask(rng, box, *sizes[image_id]))
            if seed % 3 == 0:
                del item["bbox"]
        items.append(item)
    items = [items[i] for i in rng.permutation(len(items))]
    rng.shuffle(annotations)
    data = dict(images=images, categories=categories, annotations=annotations)
    return data, items


def run_lvis_api(truth_path, results, iou_type, max_dets=300, iou_thrs=None, **params):
    """Return lvis-api's figures, precision and recall arrays."""
    from lvis import LVIS, LVISEval, LVISResults

    truth = LVIS(str(truth_path))
    dets = LVISResults(truth, copy.deepcopy(results), max_dets=max_dets)
    evaluation = LVISEval(truth, dets, iou_type)
    evaluation.params.max_dets = max_dets
    if iou_thrs is not None:
        evaluation.params.iou_thrs = np.asarray(iou_thrs)
    for name, value in params.items():
        setattr(evaluation.params, name, value)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return SimpleNamespace(
        figures=dict(evaluation.results),
        precision=evaluation.eval["precision"],
        recall=evaluation.eval["recall"],
    )


@pytest.fixture(scope="session")
def lvis_api():
    """The function that runs lvis-api."""
    return run_lvis_api


@pytest.fixture
def case(tmp_path):
    """A function that generates a case and writes its files."""

    def write(seed, with_masks=False, change=None):
        data, results = make_case(seed, with_masks)
        if change is not None:
            change(data, results)
        written = SimpleNamespace(
            truth_path=tmp_path / f"gt_{seed}.json",
            results_path=tmp_path / f"dt_{seed}.json",
            data=data,
            results=results,
            seed=seed,
        )
        written.truth_path.write_text(json.dumps(data))
        written.results_path.write_text(json.dumps(results))
        return written

    return write
