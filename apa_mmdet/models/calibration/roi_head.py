"""RoI heads whose ``test_cfg`` chooses a calibration.

Nothing about such a head changes except what it does with its logits: it keeps its
class, the keys of its checkpoints (with those of ``class_statistics`` added) and its
training.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from types import MethodType

import torch
from mmdet.models.roi_heads import (
    CascadeRoIHead,
    GridRoIHead,
    StandardRoIHead,
    TridentRoIHead,
)
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from torch import Tensor, nn

from .names import build_calibrations
from .statistics import ClassStatistics

FIELD = "calibrated_instances"
"""Of a data sample: the predictions by the calibration's name, if there are several."""


def enable() -> None:
    """Let ``test_cfg.rcnn.calibration`` have an effect on mmdet's RoI heads."""
    build = BaseRoIHead.__init__
    if hasattr(build, "calibrates"):
        return

    @functools.wraps(build)
    def __init__(self, *args, **kwargs) -> None:
        build(self, *args, **kwargs)
        calibration = (self.test_cfg or {}).get("calibration")
        if calibration is not None:
            calibrate(self, calibration)

    __init__.calibrates = True
    BaseRoIHead.__init__ = __init__


def calibrate(
    roi_head: BaseRoIHead, config: Mapping | str | Sequence[Mapping | str]
) -> None:
    """Let a RoI head calibrate its box scores; changes it in place.

    It gets ``class_statistics``, a :class:`ClassStatistics`, and ``calibrations``, the
    rules by name. Scores of a cascade are calibrated once, after the average over its
    stages; the boxes that pass from stage to stage are chosen by uncalibrated scores.
    Only the first calibration's predictions are returned. If there are several, each
    data sample also gets :data:`FIELD`; the network runs once for all of them, except
    for mask heads, which run on the boxes of each.

    Args:
        roi_head: One with the ``predict_bbox`` of StandardRoIHead or CascadeRoIHead.
        config: See :func:`~.names.build_calibrations`.

    Raises:
        ValueError: If the config is wrong, or the RoI head computes its scores in
            another way.
    """
    calibrations = build_calibrations(config)
    if not any(calibrations.values()) and len(calibrations) == 1:
        return
    name = type(roi_head).__name__
    boxes_by = type(roi_head).predict_bbox
    is_known = boxes_by in (StandardRoIHead.predict_bbox, CascadeRoIHead.predict_bbox)
    # These go on from the boxes of the first calibration.
    is_single = isinstance(roi_head, (GridRoIHead, TridentRoIHead))
    if not is_known and boxes_by is not GridRoIHead.predict_bbox:
        raise ValueError(
            f"test_cfg.rcnn.calibration: {name} computes scores in a way of its own, "
            f"expected StandardRoIHead, CascadeRoIHead or a head that predicts boxes "
            f"as they do; remove calibration from test_cfg.rcnn"
        )
    if is_single and len(calibrations) > 1:
        raise ValueError(
            f"test_cfg.rcnn.calibration has {len(calibrations)} calibrations, but "
            f"{name} can try only one at a time"
        )
    head = _scoring_head(roi_head)
    if head.custom_cls_channels and not hasattr(head.loss_cls, "use_sigmoid"):
        raise ValueError(
            f"test_cfg.rcnn.calibration: {type(head.loss_cls).__name__} has scores of "
            f"its own; set its attribute use_sigmoid, True if the scores of classes "
            f"are independent, False if they sum to 1 with the background"
        )
    roi_head.class_statistics = ClassStatistics(head.num_classes)
    roi_head.calibrations = calibrations
    roi_head._predictions = None
    # Bound methods, because copying the model binds them to the copy.
    roi_head.predict = MethodType(_predict, roi_head)
    if roi_head.with_mask:
        roi_head.predict_mask = MethodType(_predict_mask, roi_head)
    head.predict_by_feat = MethodType(_predict_by_feat, roi_head)


def check_statistics(roi_head: BaseRoIHead) -> None:
    """Check that a calibrated head's statistics suit its calibrations.

    Raises:
        RuntimeError: If the counts are missing.
        ValueError: If a class has no training boxes and the calibration needs some.
    """
    roi_head.class_statistics.require_counts()
    for rule in roi_head.calibrations.values():
        if rule is not None:
            rule.check(roi_head.class_statistics)


def _scoring_head(roi_head: BaseRoIHead) -> nn.Module:
    heads = roi_head.bbox_head
    return heads[-1] if isinstance(heads, nn.ModuleList) else heads


def _predict(self, x, rpn_results_list, batch_data_samples, *args, **kwargs):
    """``roi_head.predict``, which also tells the samples of other calibrations."""
    check_statistics(self)
    self._predictions = None
    inputs = x, rpn_results_list, batch_data_samples
    results = type(self).predict(self, *inputs, *args, **kwargs)
    if len(self.calibrations) > 1:
        # Without proposals the box head did not run.
        predictions = self._predictions or [results] * len(self.calibrations)
        for sample, *instances in zip(batch_data_samples, *predictions):
            setattr(sample, FIELD, dict(zip(self.calibrations, instances)))
        self._predictions = None
    return results


def _predict_mask(self, *args, **kwargs):
    """``roi_head.predict_mask`` for the boxes of each calibration."""
    predict = type(self).predict_mask
    bound = inspect.signature(predict).bind(self, *args, **kwargs)
    boxes = bound.arguments["results_list"]
    if not self._predictions or boxes is not self._predictions[0]:
        return predict(*bound.args, **bound.kwargs)
    for index, results in enumerate(self._predictions):
        bound.arguments["results_list"] = results
        self._predictions[index] = predict(*bound.args, **bound.kwargs)
    return self._predictions[0]


def _predict_by_feat(roi_head, rois, cls_scores, *args, rcnn_test_cfg=None, **kwargs):
    """``bbox_head.predict_by_feat`` with the scores of each calibration."""
    head, predictions = _scoring_head(roi_head), []
    predict = functools.partial(type(head).predict_by_feat, head, rois)
    for rule in roi_head.calibrations.values():
        inputs = contextlib.nullcontext((cls_scores, rcnn_test_cfg))
        if rule is not None:
            inputs = _calibrated(roi_head, rule, cls_scores, rcnn_test_cfg)
        with inputs as (logits, cfg):
            predictions.append(predict(logits, *args, rcnn_test_cfg=cfg, **kwargs))
    if len(predictions) > 1:
        roi_head._predictions = predictions
    return predictions[0]


@contextlib.contextmanager
def _calibrated(roi_head, rule, cls_scores, rcnn_test_cfg):
    """Yield logits from which the box head makes calibrated scores, and its config."""
    head, statistics = _scoring_head(roi_head), roi_head.class_statistics
    is_custom = head.custom_cls_channels
    activation = head.loss_cls.get_activation if is_custom else _softmax
    is_softmax = not (is_custom and head.loss_cls.use_sigmoid)
    scores = [rule(each, activation, statistics, is_softmax) for each in cls_scores]
    if rcnn_test_cfg is not None:
        rcnn_test_cfg = copy.copy(rcnn_test_cfg)
        rcnn_test_cfg.score_thr = rule.score_thr(rcnn_test_cfg.score_thr, is_softmax)
    if not is_custom:
        # The head takes the softmax, which gives the scores back: they sum to 1.
        yield [each.log() for each in scores], rcnn_test_cfg
        return
    head.loss_cls.get_activation = _unchanged
    try:
        yield scores, rcnn_test_cfg
    finally:
        del head.loss_cls.get_activation


def _softmax(cls_score: Tensor) -> Tensor:
    return torch.softmax(cls_score.float(), dim=-1)


def _unchanged(cls_score: Tensor) -> Tensor:
    return cls_score
