"""Repeatable training steps of whole detectors, for benchmarks."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from torch import Tensor, nn

from .configs import remove_checkpoints
from .models import quiet_mmdet

AMP_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class TrainingStep:
    """A detector, or its backbone, that takes the same training step at each call.

    Weights are random, images and annotations made up. A step zeroes the gradients,
    runs forward and backward, and updates by SGD with a learning rate of zero.

    Args:
        cfg: The detector's config; its model is changed in place.
        batch: Number of images.
        size: Height and width of the images in pixels.
        device: Where to train.
        amp: ``'fp16'`` or ``'bf16'`` for autocast to that type.
        backbone_only: Whether to train the backbone only, on the mean of its outputs.
        proposals: Two-stage detectors with random weights propose different boxes;
            steps that are given the same list, at first empty, all use the proposals
            of the first, so that their heads do the same work.
    """

    def __init__(
        self,
        cfg: Config,
        batch: int,
        size: tuple[int, int],
        device: str,
        amp: str | None = None,
        backbone_only: bool = False,
        proposals: list | None = None,
    ) -> None:
        self._autocast = torch.autocast(
            torch.device(device).type, AMP_DTYPES.get(amp), enabled=amp is not None
        )
        self._backbone_only = backbone_only
        torch.manual_seed(0)
        remove_checkpoints(cfg.model)
        # All images have one size, which these would change.
        cfg.model.get("data_preprocessor", {}).pop("batch_augments", None)
        with quiet_mmdet():
            model = MODELS.build(cfg.model)
            for module in model.modules():
                if hasattr(module, "class_frequency"):
                    module.class_frequency.fill_(0.01)
            model.init_weights()
        masks = "mask_head" in {**cfg.model, **cfg.model.get("roi_head", {})}
        shapes = [[3, *size]] * batch
        inputs = demo_mm_inputs(batch, shapes, num_classes=40, with_mask=masks)
        model = model.to(device).train()
        if hasattr(model, "roi_head") and hasattr(model, "rpn_head"):
            _share_proposals(model.rpn_head, [] if proposals is None else proposals)
        self._batch = model.data_preprocessor(inputs, True)
        self.model = model.backbone if backbone_only else model
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(parameters, lr=0.0)

    def loss(self) -> Tensor:
        """Return the loss of one forward pass, which samples the same proposals."""
        torch.manual_seed(1)
        with self._autocast:
            if self._backbone_only:
                return sum(level.mean() for level in self.model(self._batch["inputs"]))
            losses = self.model(**self._batch, mode="loss")
        return self.model.parse_losses(losses)[0]

    def __call__(self) -> None:
        """Take a step."""
        self._optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self._optimizer.step()


def _share_proposals(rpn: nn.Module, shared: list) -> None:
    own = rpn.loss_and_predict

    def loss_and_predict(*args, **kwargs):
        losses, proposals = own(*args, **kwargs)
        if not shared:
            shared.extend(instances.clone() for instances in proposals)
        return losses, [instances.clone() for instances in shared]

    rpn.loss_and_predict = loss_and_predict
