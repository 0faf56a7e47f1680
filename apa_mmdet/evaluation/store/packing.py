"""Checking a model's predictions for an image, and packing what is kept of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..core.detections import Detections
from ..core.errors import InputErrors
from ..core.ground_truth import GroundTruth
from ..core.masks import PackedMasks, encode, encode_bitmaps
from ..core.selection import select_judged
from .disk import Shard, as_xywh


class PredictionPacker:
    """Checks predictions and packs those worth keeping.

    Args:
        truth: The annotations.
        max_dets: Limit of detections that AP judges in each image.
        keep_all: Whether to keep detections that are not judged.
        with_masks: Whether predictions must have masks.
        all_masks: Whether to keep the masks of detections that are not judged.
    """

    def __init__(
        self,
        truth: GroundTruth,
        max_dets: int,
        keep_all: bool,
        with_masks: bool,
        all_masks: bool,
    ) -> None:
        self._truth = truth
        self._max_dets = max_dets
        self._keep_all = keep_all
        self._with_masks = with_masks
        self._all_masks = all_masks
        self._index = {int(i): index for index, i in enumerate(truth.image_ids)}

    def pack(self, sample: dict) -> Shard:
        """Return what is kept of one image's predictions.

        ``sample`` is described at :meth:`..metric.LVISFastMetric.process`.

        Raises:
            ValueError: If a prediction cannot be evaluated.
        """
        truth, image_id = self._truth, sample["img_id"]
        index = self._index.get(image_id)
        if index is None:
            raise ValueError(
                f"img_id {image_id!r} is not in the annotation file; the evaluator's "
                "ann_file must be the data set's"
            )
        predictions = sample["pred_instances"]
        boxes, scores, labels = (
            _to_numpy(predictions[name]) for name in ("bboxes", "scores", "labels")
        )
        boxes = boxes.reshape(-1, 4).astype(np.float32, copy=False)
        scores = scores.astype(np.float32, copy=False)
        numbers = dict(score=scores)
        has_mask_scores = "mask_scores" in predictions
        if has_mask_scores:
            mask_scores = _to_numpy(predictions["mask_scores"])
            numbers["mask_score"] = mask_scores.astype(np.float32, copy=False)
        masks = predictions["masks"] if "masks" in predictions else None
        errors = InputErrors(f"predictions of image {image_id}")
        errors.add_where(
            f"label outside the {truth.num_classes} classes that are evaluated (the "
            "data set's metainfo['classes'])",
            (labels < 0) | (labels >= truth.num_classes),
            lambda i: f"{_name(i)} ({labels[i]})",
        )
        errors.add_bad_numbers(_name, as_xywh(boxes), **numbers)
        if masks is not None:
            self._add_wrong_sizes(errors, index, masks)
        elif self._with_masks:
            raise ValueError(
                f"image {image_id} has no masks, but metric has 'segm'; evaluate only "
                "boxes with --cfg-options test_evaluator.metric=bbox, in training "
                "val_evaluator.metric=bbox"
            )
        errors.raise_if_any(len(labels))

        image_index = np.full(len(labels), index, np.int32)
        dets = Detections(image_index, truth.label_to_class[labels], scores, boxes)
        # If masks have their own scores, their best ones differ from the best boxes.
        is_limited = not self._keep_all and not has_mask_scores
        judged = select_judged(truth, dets, self._max_dets if is_limited else -1)
        kept = judged if is_limited else np.arange(len(labels))
        counts = [b""] * len(labels)
        if masks is not None and self._with_masks:
            rows = kept if self._all_masks else judged
            for row, rle in zip(rows, self._encode(errors, masks, rows)):
                counts[row] = rle
        packed = PackedMasks.pack(counts[row] for row in kept)
        return Shard(
            np.array([index], np.int32),
            np.array([len(kept)], np.int32),
            np.array([not len(labels)]),
            dets.class_index[kept],
            scores[kept],
            numbers.get("mask_score", scores)[kept],
            boxes[kept],
            packed.lengths.astype(np.int32),
            packed.buffer,
        )

    def _add_wrong_sizes(self, errors: InputErrors, index: int, masks: Any) -> None:
        size = int(self._truth.heights[index]), int(self._truth.widths[index])
        if isinstance(masks, (list, tuple)):
            sizes = [tuple(rle["size"]) for rle in masks]
        else:
            sizes = [tuple(masks.shape[1:])] * len(masks)
        errors.add_where(
            f"mask of another size than its image, {size[0]} x {size[1]} (height x "
            "width)",
            np.array([any(size) and each != size for each in sizes], bool),
            lambda i: f"{_name(i)} {sizes[i][0]} x {sizes[i][1]}",
        )

    def _encode(self, errors: InputErrors, masks: Any, rows: np.ndarray) -> list[bytes]:
        """Return the RLEs of some of an image's masks."""
        if not len(rows):
            return []
        if not isinstance(masks, (list, tuple)):
            # Of a tensor, only these leave the GPU.
            return encode_bitmaps(_to_numpy(masks[rows.tolist()]))
        counts = [encode(masks[row], *masks[row]["size"]) for row in rows]
        num_pixels = np.array([np.prod(masks[row]["size"]) for row in rows])
        errors.add_damaged(
            lambda i: _name(rows[i]), PackedMasks.pack(counts), num_pixels
        )
        errors.raise_if_any(len(masks))
        return counts


def _name(row: int) -> str:
    return f"detection {row + 1}"


def _to_numpy(values: Any) -> np.ndarray:
    """Return a tensor on any device, or an array, as an array."""
    if not hasattr(values, "detach"):
        return values
    if values.dtype == torch.bfloat16:  # numpy has no such dtype
        values = values.float()
    return values.detach().cpu().numpy()
