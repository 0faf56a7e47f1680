"""Three LVIS evaluators with one interface, timed: this package's and two others.

Each takes the folder that :func:`.random_lvis.write_random_lvis` wrote, the arrays of
its detections, ``'bbox'`` or ``'segm'`` and a number of processes. It returns AP and
APr, and seconds: ``load`` (reading the annotation file) and ``evaluate`` (from
detections in memory, in the form that the evaluator takes, to the figures), each also
as CPU time, ``load_cpu`` and ``cpu``, which leaves out waiting for a core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .random_lvis import as_results

Arrays = Mapping[str, np.ndarray]


def _timed(
    load: Callable[[], Any], evaluate: Callable[[Any], dict[str, float]]
) -> dict[str, float]:
    """Return the figures of ``evaluate(load())`` with the time of both steps."""

    def now() -> tuple[float, float]:
        # The CPU time is that of this process and of its children that have ended.
        return time.perf_counter(), sum(os.times()[:4])

    start, start_cpu = now()
    truth = load()
    loaded, loaded_cpu = now()
    figures = evaluate(truth)
    end, end_cpu = now()
    return dict(
        load=loaded - start,
        evaluate=end - loaded,
        load_cpu=loaded_cpu - start_cpu,
        cpu=end_cpu - loaded_cpu,
        **figures,
    )


def _run_apa_mmdet(
    folder: Path, arrays: Arrays, iou_type: str, num_workers: int | None
) -> dict[str, float]:
    from ..evaluation import Detections, evaluate, load_ground_truth
    from ..evaluation.core.masks import PackedMasks

    with_masks = iou_type == "segm"

    def run(truth: Any) -> dict[str, float]:
        names = ("image_index", "class_index", "scores")
        dets = Detections(
            *(arrays[name] for name in names), arrays["boxes"].astype(np.float64)
        )
        if with_masks:
            lengths = arrays["mask_lengths"]
            dets.masks = PackedMasks.from_lengths(arrays["mask_bytes"], lengths)
        result = evaluate(truth, dets, iou_type, num_workers=num_workers)
        share = len(result.ranked.image_index) / len(dets)
        figures = result.summary()
        return dict(AP=figures["AP"], APr=figures["APr"], judged=share)

    return _timed(lambda: load_ground_truth(folder / "truth.json", with_masks), run)


def _run_lvis_api(
    folder: Path, arrays: Arrays, iou_type: str, num_workers: int | None
) -> dict[str, float]:
    import lvis.eval
    from lvis import LVIS, LVISEval, LVISResults

    if not hasattr(np, "float"):  # as apa_mmdet.compat repairs it
        lvis.eval.np.float = float
    items = as_results(arrays)

    def run(truth: LVIS) -> dict[str, float]:
        evaluation = LVISEval(truth, LVISResults(truth, items), iou_type)
        evaluation.run()
        figures = evaluation.get_results()
        return dict(AP=figures["AP"], APr=figures["APr"])

    return _timed(lambda: LVIS(str(folder / "truth.json")), run)


def _run_faster_coco_eval(
    folder: Path, arrays: Arrays, iou_type: str, num_workers: int | None
) -> dict[str, float]:
    from faster_coco_eval import COCO, COCOeval_faster

    items = as_results(arrays)

    def run(truth: COCO) -> dict[str, float]:
        dets = truth.loadRes(items)
        evaluation = COCOeval_faster(truth, dets, iou_type, lvis_style=True)
        evaluation.params.maxDets = [300]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures = evaluation.stats_as_dict
        return dict(AP=figures["AP_all"], APr=figures["APr"])

    return _timed(lambda: COCO(str(folder / "truth.json")), run)


EVALUATORS = {
    "apa_mmdet": _run_apa_mmdet,
    "lvis-api": _run_lvis_api,
    "faster-coco-eval": _run_faster_coco_eval,
}
