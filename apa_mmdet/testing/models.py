"""What a model with random weights needs before its outputs can be compared."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def quiet_mmdet() -> Iterator[None]:
    """Within the block, build from mmdet's registries and log errors only.

    MMEngine's message hub reads as at the start of a run, for models that ask it for
    the current iteration.
    """
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    MessageHub.get_current_instance().update_info_dict(dict(epoch=0, iter=0))
    try:
        with DefaultScope.overwrite_default_scope("mmdet"):
            yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def fill_zero_weights(model: nn.Module, gamma: float = 1.0) -> None:
    """Give weights that are initialised to zero other values.

    The last norm of a residual branch and the last layer of a box branch start at
    zero, which hides what happens before them and lets no gradient pass.

    Args:
        model: Changed in place.
        gamma: The weight of norms; other layers get a standard deviation of 0.01.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and not parameter.any():
            if parameter.dim() == 1:
                parameter.fill_(gamma)
            else:
                parameter.normal_(0.0, 0.01)


@contextmanager
def fitting_statistics(
    model: nn.Module, momentum: float | None = None
) -> Iterator[None]:
    """Let every batch norm gather the statistics of what runs within the block.

    Without the statistics of its input, a network whose norms are frozen multiplies
    its features from block to block.

    Args:
        model: Its norms train within the block, whatever their mode is outside.
        momentum: None for the mean over all passes, 1 for the last pass.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    settings = [(norm.training, norm.momentum, norm.eps) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum, norm.eps = momentum, norm.eps or 1e-5
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, (training, *rest) in zip(norms, settings):
            norm.train(training)
            norm.momentum, norm.eps = rest
