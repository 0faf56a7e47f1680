"""The authors' classification files load into classifiers, head included."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("mmpretrain", reason="apa_mmdet.classification needs mmpretrain")

from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS

import apa_mmdet.classification  # noqa: F401
from apa_mmdet.engine.weights import check_weights, load_weights

# The authors' networks in plain torch, an independent implementation of the published
# architectures with the authors' names: its state dict is a file in their format.


class Unified(nn.Module):
    """The gate; `rect` multiplies it by its input. `clamp` as in the authors' code."""

    def __init__(self, kappa, rect=False, old=False):
        super().__init__()
        self.lambda_param = nn.Parameter(torch.empty(1).uniform_(-0.1, 1))
        self.kappa_param = nn.Parameter(torch.empty(1).uniform_(*kappa))
        self.rect, self.old = rect, old

    def forward(self, z):
        lam, kappa = self.lambda_param, self.kappa_param
        if self.rect:
            lam = F.relu(lam) + 1e-8
        elif self.old:
            lam, kappa = lam.clamp(1e-4, 10), kappa.clamp(-3.5, 3.5)
        else:
            lam = lam.clamp(1e-4)
        gate = torch.exp(-torch.log1p(lam * torch.exp(-kappa * z)) / lam)
        return z * gate if self.rect else gate


class SE(nn.Module):
    def __init__(self, channels, ratio, old):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.excitation = nn.Sequential(
            nn.Linear(channels, channels // ratio, bias=False),
            nn.ReLU(),
            nn.Linear(channels // ratio, channels, bias=False),
            nn.Dropout(0.1),
        )
        self.gate_name = "unact" if old else "uniact"
        self.add_module(self.gate_name, Unified((-1, 0), old=old))

    def forward(self, x):
        y = self.excitation(self.norm(x.mean((2, 3))))
        return x * getattr(self, self.gate_name)(y)[:, :, None, None]


class CBAM(nn.Module):
    def __init__(self, channels, ratio, old):
        super().__init__()
        self.ChannelGate, self.SpatialGate = nn.Module(), nn.Module()
        self.ChannelGate.norm = nn.LayerNorm(channels)
        self.ChannelGate.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, channels // ratio),
            nn.ReLU(),
            nn.Linear(channels // ratio, channels),
        )
        self.ChannelGate.uniact = Unified((0, 1))
        self.SpatialGate.spatial = nn.Module()
        self.SpatialGate.spatial.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.SpatialGate.spatial.bn = nn.BatchNorm2d(1, momentum=0.01)
        self.SpatialGate.uniact = Unified((0, 1))

    def forward(self, x):
        channel, spatial = self.ChannelGate, self.SpatialGate
        pooled = (x.mean((2, 3)), x.amax((2, 3)))
        total = sum(channel.mlp(channel.norm(each)) for each in pooled)
        x = x * channel.uniact(total)[:, :, None, None]
        y = torch.stack((x.amax(1), x.mean(1)), 1)
        return x * spatial.uniact(spatial.spatial.bn(spatial.spatial.conv(y)))


ATTENTION = {"se": SE, "cbam": CBAM}


class Bottleneck(nn.Module):
    def __init__(self, inner, width, outer, stride, groups, attention):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        for site in (1, 2, 3):
            self.add_module(f"unirect{site}", Unified((0.8, 1.2), rect=True))
        self.attention = attention
        self.add_module(attention, ATTENTION[attention](outer, 16, False))
        if inner != outer:
            conv = nn.Conv2d(inner, outer, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outer))

    def forward(self, x):
        y = self.unirect1(self.bn1(self.conv1(x)))
        y = self.unirect2(self.bn2(self.conv2(y)))
        y = getattr(self, self.attention)(self.bn3(self.conv3(y)))
        return self.unirect3(
            y + (self.downsample(x) if hasattr(self, "downsample") else x)
        )


class Cosine(nn.Module):
    """The authors' cosine classifiers, of a fixed and of a learnt scale."""

    def __init__(self, features, classes, learnable):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-1, 1))
        self.scale = nn.Parameter(torch.tensor([4.5])) if learnable else 4.0

    def forward(self, x):
        norm = x.norm(dim=1, keepdim=True)
        x = self.scale**2 * (norm / (1 + norm)) * (x / norm)
        return x @ (self.weight / self.weight.norm(dim=1, keepdim=True)).T


class ImageNetNet(nn.Module):
    def __init__(self, blocks, attention, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = Unified((0.8, 1.2), rect=True)
        inner = 64
        for stage, count in enumerate(blocks):
            outer = 256 * 2**stage
            width = outer // 4 if groups == 1 else outer // 2
            layer = nn.Sequential()
            for index in range(count):
                stride = 2 if stage and not index else 1
                block = Bottleneck(inner, width, outer, stride, groups, attention)
                layer.append(block)
                inner = outer
            self.add_module(f"layer{stage + 1}", layer)
        self.fc = nn.Linear(inner, 7)

    def forward(self, x):
        x = F.max_pool2d(self.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(x.mean((2, 3)))


class CIFARBlock(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.se = SE(outer, 4, True)
        self.stride = stride

    def forward(self, x):
        y = self.se(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        if self.stride == 2:
            zeros = torch.zeros_like(y[:, : y.shape[1] // 4])
            x = torch.cat((zeros, x[:, :, ::2, ::2], zeros), 1)
        return F.relu(y + x)


class CIFARNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inner = 16
        for stage, outer in enumerate((16, 32, 64)):
            layer = nn.Sequential()
            for index in range(5):
                stride = 2 if stage and not index else 1
                layer.append(CIFARBlock(inner, outer, stride))
                inner = outer
            self.add_module(f"layer{stage + 1}", layer)
        self.linear = nn.Linear(64, 7)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def filled(net):
    """Give a network norms with fixed numbers, and features of order one."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, (Bottleneck, CIFARBlock)):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            last.weight.data.mul_(0.2)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
    return net.eval()


def classifier(backbone, channels, **head):
    head = {"type": "LinearClsHead", "num_classes": 7, "in_channels": channels} | head
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(
            dict(
                type="ImageClassifier",
                backbone=backbone,
                neck=dict(type="GlobalAveragePooling"),
                head=head,
            )
        ).eval()


def resnet(depth, plugin="APASELayer", **kwargs):
    plugin = dict(cfg=dict(type=plugin), position="after_conv3")
    return dict(type="APAResNet", depth=depth, plugins=[plugin], **kwargs)


CASES = {
    "SE-ResNet-50": ((3, 4, 6, 3), "se", 1, resnet(50)),
    "SE-ResNet-101": ((3, 4, 23, 3), "se", 1, resnet(101)),
    "SE-ResNeXt-50": (
        (3, 4, 6, 3),
        "se",
        32,
        dict(resnet(50), type="APAResNeXt", groups=32, base_width=4),
    ),
    "CBAM-ResNet-50": ((3, 4, 6, 3), "cbam", 1, resnet(50, "APACBAM")),
}


def save(net, path, **more):
    """Write what the authors' program saves after an epoch."""
    content = dict(
        model=net.state_dict(),
        optimizer={"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        lr_scheduler={"last_epoch": 99},
        epoch=99,
        args=argparse.Namespace(model="se_resnet50", lr=0.256),
    )
    torch.save({**content, **more}, path)
    return str(path)


@pytest.fixture
def quiet(monkeypatch):
    """What MMEngine says about keys while it loads; it must stay empty."""
    from mmengine.logging import MMLogger

    said = []
    monkeypatch.setattr(
        MMLogger.get_current_instance(), "handle", lambda r: said.append(r.getMessage())
    )
    return said


def complaints(said):
    return [message for message in said if "source state_dict" in message]


def assert_close(actual, expected):
    assert expected.std() > 0.01
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_published_ones(case, tmp_path, quiet):
    blocks, attention, groups, backbone = CASES[case]
    net = filled(ImageNetNet(blocks, attention, groups))
    model = classifier(backbone, 2048)
    load_checkpoint(model, save(net, tmp_path / "model_99.pth"))
    assert complaints(quiet) == []
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(model(x), net(x))


@pytest.mark.parametrize("learnable", [False, True])
def test_logits_of_the_cosine_classifiers(learnable, tmp_path, quiet):
    """The files of ImageNet-LT, iNaturalist 2018 and Places-LT."""
    net = ImageNetNet((3, 4, 6, 3), "se")
    net.fc = Cosine(2048, 7, learnable)
    net = filled(net)
    fc = dict(type="CosineLinear", learnable=learnable)
    model = classifier(resnet(50), 2048, type="LongTailClsHead", predictor_cfg=fc)
    load_checkpoint(model, save(net, tmp_path / "model_199.pth"))
    assert complaints(quiet) == []
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(model(x), net(x))


def test_logits_of_the_network_for_cifar(tmp_path, quiet):
    net = filled(CIFARNet())
    model = classifier(dict(type="SEResNetCIFAR"), 64)
    load_checkpoint(model, save(net, tmp_path / "model_499.pth"))
    assert complaints(quiet) == []
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(model(x), net(x))


def test_ways_to_load(tmp_path, quiet):
    """By init_cfg of the classifier, as a bare state dict, and from data parallel."""
    net = filled(CIFARNet())
    state = net.state_dict()
    parallel = {f"module.{key}": value for key, value in state.items()}
    files = dict(bare=state, parallel=parallel, ema={"model_ema": parallel})
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
        model = classifier(dict(type="SEResNetCIFAR"), 64)
        path = str(tmp_path / f"{name}.pth")
        model.init_cfg = dict(type="Pretrained", checkpoint=path)
        model.init_weights()
        assert torch.equal(model.head.fc.weight, net.linear.weight), name
        block = model.backbone.layer2[3]
        assert torch.equal(block.conv2.weight, net.layer2[3].conv2.weight), name
    assert complaints(quiet) == []


def test_a_backbone_takes_only_its_part(tmp_path, quiet):
    net = filled(ImageNetNet((3, 4, 6, 3), "se"))
    path = save(net, tmp_path / "file.pth")
    model = classifier(resnet(50), 2048)
    before = model.head.fc.weight.clone()
    model.backbone.init_cfg = dict(type="Pretrained", checkpoint=path)
    model.backbone.init_weights()
    assert torch.equal(model.backbone.conv1.weight, net.conv1.weight)
    assert torch.equal(model.head.fc.weight, before)
    assert complaints(quiet) == []


def test_tools_accept_a_file_that_fits(tmp_path):
    net = filled(CIFARNet())
    content = load_weights(save(net, tmp_path / "model_499.pth"))
    model = classifier(dict(type="SEResNetCIFAR"), 64)
    check_weights(model, content, "model_499.pth")
    assert torch.equal(model.head.fc.weight, net.linear.weight)
    del content["model"]["linear.weight"]
    with pytest.raises(ValueError, match=r"lacks head.fc.weight"):
        check_weights(classifier(dict(type="SEResNetCIFAR"), 64), content, "file.pth")


def test_another_architecture_is_refused(tmp_path):
    path = save(filled(ImageNetNet((3, 4, 6, 3), "se")), tmp_path / "file.pth")
    with pytest.raises(RuntimeError, match=r"CBAM.*type='APASELayer'"):
        load_checkpoint(classifier(resnet(50, "APACBAM"), 2048), path)
    with pytest.raises(RuntimeError, match=r"set depth=50"):
        load_checkpoint(classifier(resnet(101), 2048), path)


def test_checkpoints_of_this_package_are_not_changed():
    model = classifier(dict(type="SEResNetCIFAR"), 64)
    with torch.no_grad():
        model.backbone.layer1[0].se.gate.lambda_param.fill_(-0.5)
    other = classifier(dict(type="SEResNetCIFAR"), 64)
    other.load_state_dict(model.state_dict())
    assert other.backbone.layer1[0].se.gate.lambda_param == -0.5
