"""Checkpoints in the authors' format, filled with fixed numbers."""

import argparse
import math

import pytest
import torch

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class _Maker:
    """Fills a state dict so that activations are of order one."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.state = {}

    def uniform(self, key, shape, low, high):
        drawn = torch.rand(shape, generator=self.generator)
        self.state[key] = low + (high - low) * drawn

    def weight(self, key, *shape):
        bound = math.sqrt(5 / math.prod(shape[1:]))
        self.uniform(key, shape, -bound, bound)

    def norm(self, key, channels, scale=1.0, statistics=True):
        self.uniform(f"{key}.weight", channels, 0.5 * scale, 1.5 * scale)
        self.uniform(f"{key}.bias", channels, -0.2, 0.2)
        if statistics:
            self.uniform(f"{key}.running_mean", channels, -0.2, 0.2)
            self.uniform(f"{key}.running_var", channels, 0.5, 1.5)
            self.state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    def pair(self, key, kappa):
        self.uniform(f"{key}.lambda_param", 1, 0.05, 1.0)
        self.uniform(f"{key}.kappa_param", 1, *kappa)

    def attention(self, block, kind, channels, gate):
        hidden = channels // 16
        if kind == "se":
            self.norm(f"{block}.se.norm", channels, statistics=False)
            self.weight(f"{block}.se.excitation.0.weight", hidden, channels)
            self.weight(f"{block}.se.excitation.2.weight", channels, hidden)
            self.pair(f"{block}.se.{gate}", (-1.0, 0.0))
        elif kind == "cbam":
            channel = f"{block}.cbam.ChannelGate"
            self.norm(f"{channel}.norm", channels, statistics=False)
            for index, shape in ((1, (hidden, channels)), (3, (channels, hidden))):
                self.weight(f"{channel}.mlp.{index}.weight", *shape)
                self.uniform(f"{channel}.mlp.{index}.bias", shape[0], -0.2, 0.2)
            self.pair(f"{channel}.{gate}", (0.0, 1.0))
            spatial = f"{block}.cbam.SpatialGate"
            self.weight(f"{spatial}.spatial.conv.weight", 1, 2, 7, 7)
            self.norm(f"{spatial}.spatial.bn", 1)
            self.pair(f"{spatial}.{gate}", (0.0, 1.0))


def make_state(depth=50, attention="se", gate="uniact", rect="unirect", width=64):
    """Return a backbone's state dict with the authors' names."""
    maker = _Maker()
    maker.weight("conv1.weight", width, 3, 7, 7)
    maker.norm("bn1", width)
    if rect:
        maker.pair("relu", (1.0, 1.3))
    inputs = width
    for stage, count in enumerate(BLOCKS[depth]):
        inner = width * 2**stage
        outer = 4 * inner
        for index in range(count):
            block = f"layer{stage + 1}.{index}"
            maker.weight(f"{block}.conv1.weight", inner, inputs, 1, 1)
            maker.norm(f"{block}.bn1", inner)
            maker.weight(f"{block}.conv2.weight", inner, inner, 3, 3)
            maker.norm(f"{block}.bn2", inner)
            maker.weight(f"{block}.conv3.weight", outer, inner, 1, 1)
            maker.norm(f"{block}.bn3", outer, scale=0.15)
            if index == 0:
                maker.weight(f"{block}.downsample.0.weight", outer, inputs, 1, 1)
                maker.norm(f"{block}.downsample.1", outer)
            if rect:
                for site in (1, 2, 3):
                    maker.pair(f"{block}.{rect}{site}", (1.0, 1.3))
            maker.attention(block, attention, outer, gate)
            inputs = outer
    return maker.state


def make_classification_file(state, **more):
    """Return what the authors' classification program saves."""
    outputs = state["layer4.0.conv3.weight"].shape[0]
    head = {"fc.weight": torch.zeros(10, outputs), "fc.bias": torch.zeros(10)}
    return {
        "model": {**state, **head},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "lr_scheduler": {"last_epoch": 99},
        "epoch": 99,
        "args": argparse.Namespace(model="se_resnet50", lr=0.1, milestones=[30, 60]),
        **more,
    }


@pytest.fixture(scope="session")
def published_state():
    """The function that creates a backbone's state dict with the authors' names."""
    return make_state


@pytest.fixture(scope="session")
def classification_file():
    """The function that puts a backbone into a classification checkpoint."""
    return make_classification_file
