"""What calibrations know about the training data, kept in the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HOW_TO_GET_COUNTS = (
    "test with tools/test.py --read-counts, which reads them from the training data "
    "that the config names; or train with dict(type='ClassFrequencyHook') in "
    "custom_hooks and test_cfg.rcnn.calibration set, which keeps them in the checkpoint"
)


class ClassStatistics(nn.Module):
    """Class counts and box positions of the training data, as buffers.

    Checkpoints without these buffers load as before, also strictly, and leave what is
    here as it was.

    Args:
        num_classes: Number of classes C.

    Attributes:
        image_counts: Buffer (C,), int64: training images that show the class; zeros
            until ``ClassFrequencyHook`` or a checkpoint fills them.
        box_counts: Buffer (C,), int64: training boxes of the class.
        num_images: Buffer (1,), int64: training images with any annotation.
        fractal_dimension: Buffer (C,), float32: of the boxes' centres, see
            :func:`~.fractal.fractal_dimension`.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        counts = torch.zeros(num_classes, dtype=torch.int64)
        self.register_buffer("image_counts", counts)
        self.register_buffer("box_counts", counts.clone())
        self.register_buffer("num_images", counts.new_zeros(1))
        self.register_buffer("fractal_dimension", torch.ones(num_classes))

    def set(
        self,
        image_counts: Tensor,
        box_counts: Tensor,
        num_images: int,
        fractal_dimension: Tensor,
    ) -> None:
        """Set the buffers, from values as described there.

        Raises:
            ValueError: If they are of another number of classes.
        """
        if image_counts.shape != self.image_counts.shape:
            raise ValueError(
                f"the training data has {image_counts.numel()} classes, but the box "
                f"head has num_classes={self.num_classes}; set num_classes of the box "
                f"head, its loss and the mask head to the data set's"
            )
        self.image_counts.copy_(image_counts)
        self.box_counts.copy_(box_counts)
        self.num_images.fill_(num_images)
        self.fractal_dimension.copy_(fractal_dimension)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # They describe the data, not the model; other checkpoints lack them.
        for name, buffer in self.named_buffers():
            state_dict.setdefault(prefix + name, buffer)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_weights(self) -> None:
        """Raise a RuntimeError if the counts are missing.

        MMEngine's Runner calls this after the hooks' ``before_run`` and before the
        first iteration of training.
        """
        self.require_counts()

    def require_counts(self) -> None:
        """Raise a RuntimeError if the counts are missing."""
        if not self.num_images.any():
            raise RuntimeError(
                f"test_cfg.rcnn.calibration needs the class counts of the training "
                f"data, and neither the checkpoint nor a hook has given them: "
                f"{HOW_TO_GET_COUNTS}"
            )
