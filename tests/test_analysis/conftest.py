"""A model with every way of calling an activation, and data for it."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from apa_mmdet.layers import AGLU

NUM_CLASSES = 4


class Block(nn.Module):
    """Calls one ReLU twice, one function inline, one AGLU twice, and a gate."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU()
        self.aglu = AGLU(init=dict(lam=0.5, kappa=2.0))
        self.gate = nn.Sigmoid()

    def forward(self, x):
        x = self.relu(self.conv(x))
        x = self.relu(x - 1)
        x = self.aglu(F.leaky_relu(x + 0.5))
        return self.aglu(x) * self.gate(-x)


class Loss(nn.Module):
    """Any classification loss, as MMDetection's heads call it."""

    use_sigmoid = True

    def forward(self, cls_score, label, weight=None, avg_factor=None):
        return cls_score.sum() * 0


class Head(nn.Module):
    """A classifier of the pixels of a map, with or without a background logit."""

    def __init__(self, num_logits):
        super().__init__()
        self.num_classes = NUM_CLASSES
        self.fc = nn.Linear(3, num_logits)
        self.loss_cls = Loss()

    def forward(self, x, labels):
        logits = self.fc(x.flatten(2).transpose(1, 2).flatten(0, 1))
        return dict(loss_cls=self.loss_cls(logits, labels, avg_factor=1))


class Detector(nn.Module):
    """A backbone and a head, called as MMDetection's detectors are."""

    def __init__(self, num_logits=NUM_CLASSES):
        super().__init__()
        self.block = Block()
        self.head = Head(num_logits)

    def data_preprocessor(self, data, training):
        data["inputs"] = torch.stack(data["inputs"])
        return data

    def forward(self, inputs, data_samples, mode):
        assert mode == "loss"
        return self.head(self.block(inputs), data_samples[0].gt_instances.labels)


class Images(torch.utils.data.Dataset):
    """Random images; every pixel is a proposal with a label."""

    def __init__(self, num_images=12, size=10):
        self.num_images, self.size = num_images, size

    def __len__(self):
        return self.num_images

    def __getitem__(self, index):
        rng = torch.Generator().manual_seed(index)
        image = torch.randn(3, self.size, self.size, generator=rng)
        # Background, the last label, on most.
        labels = torch.randint(0, 3 * NUM_CLASSES, (self.size**2,), generator=rng)
        sample = DetDataSample(metainfo=dict(img_id=index))
        sample.gt_instances = InstanceData(labels=labels.clamp(max=NUM_CLASSES))
        return dict(inputs=image, data_samples=sample)


@pytest.fixture
def detector():
    """The function that builds such a detector, always with the same weights."""

    def build(num_logits=NUM_CLASSES):
        torch.manual_seed(0)
        return Detector(num_logits)

    return build


@pytest.fixture
def images():
    """The function that makes such images."""
    return Images
