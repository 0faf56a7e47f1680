"""Running a config's detector on its data, watched by a collector."""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import nn

from ..datasets.class_frequency import image_counts
from ..datasets.labels import leaves
from ..engine.weights import check_weights, load_detector
from ..evaluation.core.workers import progress_bar
from ..testing.configs import dicts
from ..testing.models import quiet_mmdet
from .collect import CLASSIFIER, Collector, Statistics
from .report import Parameters
from .sites import parameters_of

# Of a class's training images: rare up to 10, common up to 100, as in LVIS.
_GROUPS, _LIMITS = ("r", "c", "f"), (10, 100)


def build_model(
    cfg: Config, checkpoint: str | None = None, seed: int = 0
) -> tuple[nn.Module, Parameters]:
    """Return a config's detector, and the lambda and kappa that it is built with.

    Args:
        cfg: The config.
        checkpoint: Path of its weights; without them, :func:`prepare` has to follow.
        seed: Of what is drawn at random.

    Raises:
        ValueError: If the checkpoint cannot be read, or belongs to another
            architecture.
    """
    content = None if checkpoint is None else load_detector(checkpoint)
    _set_seed(seed)
    with quiet_mmdet():
        model = MODELS.build(cfg.model)
    start = parameters(model)
    if content is not None:
        check_weights(model, content, checkpoint)
    return model, start


def prepare(
    model: nn.Module, frequency: torch.Tensor, is_trained: bool, seed: int = 0
) -> None:
    """Make a model ready to be analysed.

    An untrained one gets the weights that training would start with and is put in
    training mode, so that batch norms use the statistics of the images.

    Args:
        model: As from :func:`build_model`.
        frequency: (C,) class frequencies of the training data, for losses that need
            them and found none in a checkpoint.
        is_trained: Whether it has a checkpoint's weights.
        seed: Of random weights.
    """
    for module in model.modules():
        if hasattr(module, "set_class_frequency") and not module.class_frequency.any():
            module.set_class_frequency(frequency)
    if not is_trained:
        _set_seed(seed)
        with quiet_mmdet():
            model.init_weights()
    model.train(not is_trained)


def parameters(model: nn.Module) -> Parameters:
    """Return lambda and kappa of all activations and, by their head, classifiers."""
    found = {}
    for path, module in model.named_modules():
        pair = parameters_of(module)
        if pair is not None:
            found[path.removesuffix(f".{CLASSIFIER}")] = pair
    return found


def build_dataset(cfg: Config, split: str) -> Any:
    """Return the ``train`` or ``val`` data set of a config, with annotations.

    Training images come as training sees them, augmented and oversampled. Validation
    images come as testing sees them; their annotations are loaded as in training, so
    that they are resized with the image.
    """
    training = cfg.train_dataloader.dataset
    dataset = copy.deepcopy(cfg[f"{split}_dataloader"].dataset)
    if split != "train":
        with_pipeline = [each for each in dicts(training) if "pipeline" in each]
        load = [
            step
            for step in with_pipeline[-1]["pipeline"]
            if str(step["type"]).startswith("Load")
        ]
        for each in dicts(dataset):
            if "pipeline" in each:
                rest = [
                    step
                    for step in each["pipeline"]
                    if not str(step["type"]).startswith("Load")
                ]
                each["pipeline"] = [*load, *rest]
    with quiet_mmdet():
        return DATASETS.build(dataset)


def class_images(dataset: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of a data set's classes and how many images show each."""
    counts, _ = image_counts(dataset)
    return tuple(next(leaves(dataset)).metainfo["classes"]), counts.numpy()


def class_groups(counts: np.ndarray) -> np.ndarray:
    """Return LVIS's group of classes shown by so many training images: r, c or f."""
    return np.array(_GROUPS)[np.digitize(counts, _LIMITS, right=True)]


def collect(
    model: nn.Module,
    dataset: Any,
    statistics: Statistics,
    num_images: int,
    patterns: Sequence[str] = ("*",),
) -> Statistics:
    """Run a model on images chosen at random, and return what was collected.

    With several processes, each takes its share of the images, and the first one gets
    the statistics of all; they are what one process would have collected.

    Args:
        model: A detector that computes losses, in the mode that it is wanted.
        dataset: As from :func:`build_dataset`.
        statistics: To add to.
        num_images: Limit of the number of images.
        patterns: As in :class:`.Collector`.

    Raises:
        ValueError: After the first image, if a pattern matches nothing.
    """
    seed = statistics.sampler.seed
    order = np.random.default_rng(seed).permutation(len(dataset))[:num_images]
    rank, world_size = 0, 1
    if dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    indices = order[rank::world_size].tolist()
    bar = progress_bar("analysing", "images", total=len(indices))
    with quiet_mmdet(), torch.no_grad(), bar:
        with Collector(model, statistics, patterns) as collector:
            for number, index in enumerate(indices):
                _run(model, dataset, index, collector)
                if number == 0:
                    _check_patterns(patterns, collector)
                bar.update()
    if world_size > 1:
        results = [None] * world_size if rank == 0 else None
        dist.gather_object(statistics, results)
        for other in (results or [])[1:]:
            statistics.merge(other)
    return statistics


def _run(model: nn.Module, dataset: Any, index: int, collector: Collector) -> None:
    """Compute the losses of one image, with random choices of its own."""
    _set_seed(zlib.crc32(f"{collector.statistics.sampler.seed} {index}".encode()))
    data = pseudo_collate([dataset[index]])
    sample = data["data_samples"][0]
    if "gt_instances" not in sample:
        raise ValueError(
            "the data set's pipeline loads no annotations, which classifiers are "
            "analysed by: add LoadAnnotations to the training pipeline"
        )
    # An oversampled image is one block in the bootstrap, however often it appears.
    block = zlib.crc32(str(sample.metainfo.get("img_id", index)).encode())
    collector.start_image(index, block)
    data = model.data_preprocessor(data, training=True)
    model(**data, mode="loss")


def _set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _check_patterns(patterns: Sequence[str], collector: Collector) -> None:
    for pattern in patterns:
        if pattern not in collector.matched:
            found = sorted(collector.found)
            raise ValueError(
                f"--sites {pattern!r} matches none of the model's {len(found)} "
                f"activations and classifiers, such as {', '.join(found[:3])} and "
                f"{found[-1]}"
            )
