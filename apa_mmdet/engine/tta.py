"""Test-time augmentation of boxes, for detectors with and without masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import nn

from .launch import is_classifier


def enable_tta(cfg: Config) -> None:
    """Set up test-time augmentation in a config: flips, unless it has its own.

    The model is wrapped, the pipeline of the test data is replaced, and ``'segm'`` is
    removed from the metrics, since only boxes can be merged. As many boxes per image
    are kept as without augmentation.

    Raises:
        ValueError: If an evaluator's only metric is ``'segm'``, or the model is a
            classifier.
    """
    if is_classifier(cfg):
        raise ValueError(
            "--tta merges the boxes of a detector, and the config is an image "
            "classifier's; drop --tta"
        )
    test_cfg = cfg.model.get("test_cfg") or {}
    limit = test_cfg.get("rcnn", test_cfg).get("max_per_img", 100)
    tta_cfg = dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=limit)
    cfg.setdefault("tta_model", dict(type="DetTTAModel", tta_cfg=tta_cfg))
    datasets = list(_leaves(cfg.test_dataloader.dataset))
    if "tta_pipeline" not in cfg:
        flips = [dict(type="RandomFlip", prob=prob) for prob in (1.0, 0.0)]
        meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
        meta_keys += ("flip", "flip_direction")
        pack = dict(type="PackDetInputs", meta_keys=meta_keys)
        augment = dict(type="TestTimeAug", transforms=[flips, [pack]])
        cfg.tta_pipeline = [*datasets[0].pipeline[:-1], augment]
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    evaluators = cfg.test_evaluator
    if "metrics" in evaluators:  # an evaluator instead of metrics
        evaluators = evaluators.metrics
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        _evaluate_boxes(evaluator)


def _leaves(dataset: dict) -> Iterator[dict]:
    """Yield the configs of the data sets inside any nesting of wrappers."""
    for inner in dataset.get("datasets", [dataset.get("dataset")]):
        if inner is None:
            yield dataset
        else:
            yield from _leaves(inner)


def _evaluate_boxes(evaluator: dict) -> None:
    metrics = evaluator.get("metric")
    names = [metrics] if isinstance(metrics, str) else list(metrics or ())
    if "segm" not in names:
        return
    names.remove("segm")
    if not names:
        raise ValueError(
            "--tta merges boxes only, and the metric of test_evaluator is 'segm'; add "
            "--cfg-options test_evaluator.metric=bbox, or leave out --tta"
        )
    evaluator["metric"] = names
    print(f"--tta predicts boxes only: 'segm' is left out, {names} remains")


def leave_out_masks(model: nn.Module) -> None:
    """Let a model set up by :func:`enable_tta` predict only boxes.

    A detector's RoI head then has no mask head; masks that others predict are dropped.
    """
    detector = (model.module if is_model_wrapper(model) else model).module
    if getattr(detector, "with_mask", False):
        print("--tta predicts boxes only: the detector's masks are left out")
        if hasattr(detector, "roi_head"):
            detector.roi_head.mask_head = None
    detector.register_forward_hook(_drop_masks)


def _drop_masks(
    detector: nn.Module, args: Any, samples: Sequence[DetDataSample]
) -> None:
    for sample in samples:
        sample.pred_instances.pop("masks", None)
