"""From a model's predictions for an image to what is kept of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .detections import Problems, choose, note_bad_numbers
from .ground_truth import GroundTruth
from .masks import encode, encode_array
from .parts import Part, as_xywh


class PredictionPacker:
    """Checks predictions and packs what is worth keeping.

    Args:
        truth: The annotations.
        max_dets: Detections judged of each image.
        keeps_all: Whether to keep detections that LVIS does not judge.
        needs_masks: Whether predictions must have masks.
        masks_of: Whose masks to keep: ``'judged'`` detections', ``'all'`` or None.
    """

    def __init__(
        self,
        truth: GroundTruth,
        max_dets: int,
        keeps_all: bool,
        needs_masks: bool,
        masks_of: str | None,
    ) -> None:
        self._truth = truth
        self._max_dets = max_dets
        self._keeps_all = keeps_all
        self._needs_masks = needs_masks
        self._masks_of = masks_of
        self._index = {int(i): index for index, i in enumerate(truth.image_ids)}

    def pack(self, sample: dict) -> Part:
        """Return what is kept of one image's predictions.

        Args:
            sample: See :meth:`~.lvis_metric.LVISFastMetric.process`.

        Raises:
            ValueError: If a prediction cannot be evaluated.
        """
        truth, image_id = self._truth, sample["img_id"]
        index = self._index.get(image_id)
        if index is None:
            raise ValueError(
                f"img_id {image_id!r} is not in the annotation file; the evaluator's "
                "ann_file must be that of the data set"
            )
        found = sample["pred_instances"]
        box, score, label = (
            _numpy(found[name]) for name in ("bboxes", "scores", "labels")
        )
        box = box.reshape(-1, 4).astype(np.float32, copy=False)
        score = score.astype(np.float32, copy=False)
        mask_score = score
        if "mask_scores" in found:
            mask_score = _numpy(found["mask_scores"]).astype(np.float32, copy=False)
        masks = found["masks"] if "masks" in found else None
        self._check_numbers(image_id, box, score, mask_score, label)
        self._check_masks(image_id, index, masks, len(label))

        image = np.full(len(label), index, np.int32)
        category = truth.labels[label]
        # Boxes and masks with scores of their own have different best ones.
        if self._keeps_all or "mask_scores" in found:
            kept = np.arange(len(label))
            judged = np.flatnonzero(truth.is_judged(truth.pair(image, category)))
        else:
            kept = judged = choose(truth, image, category, score, self._max_dets)
        counts = [b""] * len(label)
        if masks is not None and self._masks_of is not None:
            wanted = kept if self._masks_of == "all" else judged
            for place, rle in zip(wanted, _encode(masks, wanted)):
                counts[place] = rle
        counts = [counts[place] for place in kept]
        return Part(
            np.array([index], np.int32),
            np.array([len(kept)], np.int32),
            category[kept],
            score[kept],
            mask_score[kept],
            box[kept],
            np.array([len(item) for item in counts], np.int32),
            np.frombuffer(b"".join(counts), np.uint8),
        )

    def _check_numbers(
        self,
        image_id: int,
        box: np.ndarray,
        score: np.ndarray,
        mask_score: np.ndarray,
        label: np.ndarray,
    ) -> None:
        problems = Problems(f"predictions of image {image_id}")
        note_bad_numbers(problems, score, as_xywh(box), lambda i: f"detection {i}")
        if mask_score is not score:
            problems.add_where(
                "mask score is not finite",
                ~np.isfinite(mask_score),
                lambda i: f"detection {i} {mask_score[i]}",
            )
        number = self._truth.num_classes
        problems.add_where(
            f"label that none of the annotation file's {number} categories has",
            (label < 0) | (label >= number),
            lambda i: f"detection {i} ({label[i]})",
        )
        problems.check(len(score))

    def _check_masks(self, image_id: int, index: int, masks: Any, number: int) -> None:
        if masks is None:
            if self._needs_masks:
                raise ValueError(
                    f"image {image_id} has no masks, but metric has 'segm'; evaluate "
                    "boxes alone with --cfg-options test_evaluator.metric=bbox"
                )
            return
        size = int(self._truth.height[index]), int(self._truth.width[index])
        if isinstance(masks, (list, tuple)):
            sizes = [tuple(rle["size"]) for rle in masks]
        else:
            sizes = [tuple(masks.shape[1:])] * len(masks)
        problems = Problems(f"predictions of image {image_id}")
        problems.add_where(
            f"mask of another size than its image, {size[0]} x {size[1]} (height x "
            "width)",
            np.array([any(size) and each != size for each in sizes], bool),
            lambda i: f"detection {i} {sizes[i][0]} x {sizes[i][1]}",
        )
        problems.check(number)


def _numpy(values: Any) -> np.ndarray:
    """Return an array of a tensor, wherever it is, or of an array."""
    if not hasattr(values, "detach"):
        return values
    if values.dtype == torch.bfloat16:  # numpy has none
        values = values.float()
    return values.detach().cpu().numpy()


def _encode(masks: Any, index: np.ndarray) -> list[bytes]:
    """Return the RLEs of some of an image's masks."""
    if isinstance(masks, (list, tuple)):
        return [encode(masks[i], *masks[i]["size"]) for i in index]
    if not len(index):
        return []
    # Of a tensor, only what is kept leaves the GPU.
    return encode_array(_numpy(masks[index.tolist()]))
