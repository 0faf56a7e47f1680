"""Three LVIS evaluators with one interface, timed: this package's and two others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .random_lvis import as_results

Arrays = Mapping[str, np.ndarray]


def run_evaluator(
    name: str, folder: Path, arrays: Arrays, iou_type: str, num_workers: int | None
) -> dict[str, float]:
    """Evaluate random detections, and time it.

    Args:
        name: One of :data:`EVALUATORS`.
        folder: The folder that :func:`.random_lvis.write_random_lvis` wrote.
        arrays: The detections in it.
        iou_type: ``'bbox'`` or ``'segm'``.
        num_workers: Processes, if the evaluator uses several.

    Returns:
        AP and APr, and seconds: ``load`` (reading the annotation file) and ``evaluate``
        (from detections in memory, in the form that the evaluator takes, to the
        figures), each also as CPU time, ``load_cpu`` and ``cpu``, which leaves out
        waiting for a core.
    """
    # The CPU time is that of this process and of its children that have ended.
    steps = [
        (figures, time.perf_counter(), sum(os.times()[:4]))
        for figures in EVALUATORS[name](folder, arrays, iou_type, num_workers)
    ]
    times = np.diff([step[1:] for step in steps], axis=0).ravel().tolist()
    names = ("load", "load_cpu", "evaluate", "cpu")
    return dict(zip(names, times), **steps[-1][0])


# Each yields three times: with the detections ready, with the annotations read, and at
# the end with its figures.


def _apa_mmdet(
    folder: Path, arrays: Arrays, iou_type: str, num_workers: int | None
) -> Iterator[Any]:
    from ..evaluation import Detections, evaluate, load_ground_truth
    from ..evaluation.core.masks import PackedMasks

    yield
    with_masks = iou_type == "segm"
    truth = load_ground_truth(folder / "truth.json", with_masks)
    yield
    columns = (arrays[name] for name in ("image_index", "class_index", "scores"))
    dets = Detections(*columns, arrays["boxes"].astype(np.float64))
    if with_masks:
        lengths = arrays["mask_lengths"]
        dets.masks = PackedMasks.from_lengths(arrays["mask_bytes"], lengths)
    result = evaluate(truth, dets, iou_type, num_workers=num_workers)
    figures = result.summary()
    share = len(result.ranked.image_index) / len(dets)
    yield dict(AP=figures["AP"], APr=figures["APr"], judged=share)


def _lvis_api(
    folder: Path, arrays: Arrays, iou_type: str, num_workers: int | None
) -> Iterator[Any]:
    import lvis.eval
    from lvis import LVIS, LVISEval, LVISResults

    if not hasattr(np, "float"):  # as apa_mmdet.compat repairs it
        lvis.eval.np.float = float
    items = as_results(arrays)
    yield
    truth = LVIS(str(folder / "truth.json"))
    yield
    evaluation = LVISEval(truth, LVISResults(truth, items), iou_type)
    evaluation.run()
    figures = evaluation.get_results()
    yield dict(AP=figures["AP"], APr=figures["APr"])


def _faster_coco_eval(
    folder: Path, arrays: Arrays, iou_type: str, num_workers: int | None
) -> Iterator[Any]:
    from faster_coco_eval import COCO, COCOeval_faster

    items = as_results(arrays)
    yield
    truth = COCO(str(folder / "truth.json"))
    yield
    evaluation = COCOeval_faster(truth, truth.loadRes(items), iou_type, lvis_style=True)
    evaluation.params.maxDets = [300]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = evaluation.stats_as_dict
    yield dict(AP=figures["AP_all"], APr=figures["APr"])


EVALUATORS = {
    "apa_mmdet": _apa_mmdet,
    "lvis-api": _lvis_api,
    "faster-coco-eval": _faster_coco_eval,
}
