"""The augmentation of the published recipes that MMPretrain lacks."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from torchvision.transforms import AutoAugment, AutoAugmentPolicy


@TRANSFORMS.register_module()
class CIFARAutoAugment(BaseTransform):
    """AutoAugment with the policy found on CIFAR-10, from torchvision.

    MMPretrain's ``AutoAugment`` has the policy of ImageNet.

    Args:
        pad_val: Value of the pixels that move in from outside.
    """

    def __init__(self, pad_val: int = 128) -> None:
        fill = [float(pad_val)] * 3
        self._augment = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=fill)

    def transform(self, results: dict) -> dict:
        """Augment ``img``, uint8 (H, W, 3)."""
        image = self._augment(Image.fromarray(results["img"]))
        results["img"] = np.array(image)  # writable, unlike np.asarray's
        return results
