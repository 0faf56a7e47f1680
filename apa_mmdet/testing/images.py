"""Made-up images and annotations for detectors."""

from __future__ import annotations

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F

# Corners of the objects, in percent of the image.
_BOXES = [(5, 10, 30, 35), (35, 25, 90, 85), (2, 5, 98, 95), (50, 5, 75, 50)]
_SEMANTIC_CLASSES = 53


def training_batch(
    size: int, masks: bool = False, semantic_stride: int | None = None
) -> dict:
    """Return two noise images with boxes of several sizes, all of class 0.

    Args:
        size: Height and width of the images in pixels.
        masks: Whether the objects have masks.
        semantic_stride: Pixels per element of a semantic annotation, None for none.
    """
    rng = np.random.default_rng(0)
    boxes = torch.tensor(_BOXES) * size / 100
    labels = torch.zeros(len(boxes), dtype=torch.long)
    inputs, samples = [], []
    for _ in range(2):
        image = rng.integers(0, 256, (3, size, size), dtype=np.uint8)
        inputs.append(torch.from_numpy(image))
        truth = InstanceData(bboxes=boxes.clone(), labels=labels.clone())
        if masks:
            bitmaps = np.zeros((len(boxes), size, size), dtype=np.uint8)
            for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes.int().tolist()):
                bitmap[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) > 0.3
            truth.masks = BitmapMasks(bitmaps, size, size)
        jitter = torch.from_numpy(rng.normal(0, 4, (32, 4))).float()
        sample = _sample(size, (boxes.repeat(8, 1) + jitter).clamp(0, size))
        sample.gt_instances = truth
        sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0])
        if semantic_stride is not None:
            side = size // semantic_stride
            classes = rng.integers(0, _SEMANTIC_CLASSES, (1, side, side))
            sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(classes))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def inference_batch(count: int, size: int, seed: int) -> dict:
    """Return square images of patches, discs, diamonds and noise, with proposals."""
    proposals = torch.tensor([(5, 10, 40, 45), (35, 25, 90, 85), (2, 5, 98, 95)])
    samples = [_sample(size, proposals * size / 100) for _ in range(count)]
    rng = np.random.default_rng(seed)
    inputs = [_image(size, rng) for _ in range(count)]
    return dict(inputs=inputs, data_samples=samples)


def _sample(size: int, proposals: Tensor) -> DetDataSample:
    shapes = dict(img_shape=(size, size), ori_shape=(size, size))
    scale = dict(scale_factor=(1.0, 1.0), border=(0, size, 0, size))
    sample = DetDataSample(metainfo={**shapes, **scale})
    scores = torch.full((len(proposals),), 0.5)
    sample.proposals = InstanceData(bboxes=proposals, scores=scores)
    return sample


def _image(size: int, rng: np.random.Generator) -> Tensor:
    rows, columns = np.mgrid[:size, :size]
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 6, 6)))
    image = F.interpolate(coarse, (size, size), mode="bicubic")[0].numpy()
    for number in range(12):
        y, x = rng.uniform(0, size, 2)
        height, width = rng.uniform(size / 20, size / 3, 2)
        dy, dx = (rows - y) / height, (columns - x) / width
        inside = dy**2 + dx**2 < 1 if number % 2 else abs(dy) + abs(dx) < 1
        image[:, inside] = rng.uniform(0, 255, (3, 1))
    image += rng.normal(0, 12, image.shape)
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))
