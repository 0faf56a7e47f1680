"""Batch norm and activation as one operation, against the two modules."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.model import revert_sync_batchnorm
from torch import nn

from apa_mmdet.conversion import convert_activations
from apa_mmdet.layers import AGLU
from apa_mmdet.layers.attention import APASELayer
from apa_mmdet.models.backbones.fusion import (
    FusedConvModule,
    can_fuse,
    norm_activation,
    norm_add_activation,
)
from apa_mmdet.ops import use_implementation
from apa_mmdet.testing.memory import saved_bytes

N, C, H, W = 3, 6, 7, 5
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def modules(training, **options):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(C, **options)
    with torch.no_grad():
        for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
            if tensor is not None:
                tensor.uniform_(0.5, 1.5)
    return norm.train(training), AGLU(C, negative_slope=0.1, max_value=1.5)


def steps(function, norm, activation, x, rest=()):
    """Return values, gradients and statistics of two steps."""
    x, leaves = x.clone().requires_grad_(), [*norm.parameters()]
    leaves += [*activation.parameters()]
    ys = []
    for scale in (1.0, 2.0):
        y = function(scale * x, norm, activation, *rest)
        y.square().sum().backward()
        ys.append(y.detach())
    statistics = [getattr(norm, name) for name in STATISTICS]
    return [*ys, x.grad, *(leaf.grad for leaf in leaves)], statistics


def two_modules(x, norm, activation):
    return activation(norm(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
@pytest.mark.parametrize("tracked", [True, False])
def test_norm_and_activation(training, affine, momentum, tracked):
    options = dict(affine=affine, momentum=momentum, track_running_stats=tracked)
    norm, activation = modules(training, **options)
    assert can_fuse(norm, activation)
    x = 2 * torch.randn(N, C, H, W) + 1
    twins = copy.deepcopy((norm, activation))
    found, statistics = steps(norm_activation, norm, activation, x)
    twins = [module.double() for module in twins]
    expected, expected_statistics = steps(two_modules, *twins, x.double())
    for ours, true in zip(found, expected):
        scale = true.abs().max().item()
        torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-5 * scale)
    for ours, true in zip(statistics, expected_statistics):
        if true is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours.double(), true.double())


@pytest.mark.parametrize("training", [True, False])
def test_end_of_a_block(training):
    norm, activation = modules(training)
    downsample = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C)).train(
        training
    )

    def fused(x, norm, activation, downsample):
        return norm_add_activation(x, norm, activation, x.flip(0), downsample)

    def apart(x, norm, activation, downsample):
        return activation(norm(x) + downsample(x.flip(0)))

    x = torch.randn(N, C, H, W)
    twins = copy.deepcopy((norm, activation, downsample))
    found, statistics = steps(fused, norm, activation, x, (downsample,))
    norm, activation, other = (module.double() for module in twins)
    expected, expected_statistics = steps(apart, norm, activation, x.double(), (other,))
    found += [p.grad for p in downsample.parameters()]
    expected += [p.grad for p in other.parameters()]
    statistics += [*downsample.buffers()]
    expected_statistics += [*other.buffers()]
    for ours, true in zip(found + statistics, expected + expected_statistics):
        scale = true.double().abs().max().item()
        torch.testing.assert_close(
            ours.double(), true.double(), rtol=1e-5, atol=1e-5 * scale
        )


GATED = ["float64", "float32", "channels_last", "bfloat16", "plain", "no affine"]


@pytest.mark.parametrize("variant", GATED)
@pytest.mark.parametrize("downsampled", [False, True])
def test_end_of_a_block_with_a_gate(variant, downsampled):
    """The gate's gradient goes through the statistics as well."""
    norm, activation = modules(True, affine=variant != "no affine", momentum=None)
    half = variant == "bfloat16"
    attention, downsample = APASELayer(C, ratio=2), None
    if half:  # rounding would decide at a kink
        activation.max_value, attention.excitation[1] = None, nn.SiLU()
    attention.excitation[-1].eval()  # no dropout
    if downsampled:
        downsample = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C))

    def fused(x, norm, activation, attention, downsample):
        rest = x.flip(0).sin(), downsample, attention
        with torch.autocast("cpu", enabled=half):
            return norm_add_activation(x, norm, activation, *rest)

    def apart(x, norm, activation, attention, downsample):
        other = x.flip(0).sin()
        other = other if downsample is None else downsample(other)
        return activation(attention(norm(x)) + other)

    x = 2 * torch.randn(N, C, H, W)
    x = (x + 40).bfloat16() if half else x + 1
    all_modules = nn.ModuleList([norm, activation, attention, downsample or nn.ReLU()])
    twins = copy.deepcopy(all_modules).double()
    if variant == "float64":
        all_modules, x = all_modules.double(), x.double()
    if variant == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for (norm, activation, *rest), function, given in (
        (all_modules, fused, x),
        (twins, apart, x.double()),
    ):
        if not downsampled:
            rest[-1] = None
        with use_implementation("plain" if variant == "plain" else "auto"):
            found, statistics = steps(function, norm, activation, given, rest)
        for module in filter(None, rest):
            found += [p.grad for p in module.parameters()]
            statistics += module.buffers()
        results.append(found + statistics)
    tolerance = dict(float64=1e-9, bfloat16=3e-2).get(variant, 1e-5)
    for ours, true in zip(*results, strict=True):
        scale = tolerance * true.double().abs().max().item()
        torch.testing.assert_close(
            ours.double(), true.double(), rtol=tolerance, atol=scale
        )


def test_keeps_only_its_input_while_statistics_train():
    norm, activation = modules(training=True)
    x = torch.randn(8, C, 40, 40, requires_grad=True)
    size = x.numel() * x.element_size()
    inputs = [*nn.ModuleList([norm, activation]).state_dict(keep_vars=True).values()]
    assert saved_bytes(lambda: norm_activation(x * 1, norm, activation), inputs) < (
        1.01 * size
    )
    assert saved_bytes(lambda: activation(norm(x * 1)), inputs) > 1.9 * size


def test_statistics_are_not_rounded_to_the_dtype_of_the_input():
    norm, activation = modules(training=True, track_running_stats=False)
    x = (torch.randn(N, C, H, W) + 20).bfloat16()
    y = norm_activation(x, norm, activation)
    true = activation.double()(norm.double()(x.double()))
    torch.testing.assert_close(y.double(), true, rtol=8e-3, atol=8e-3)


def test_an_empty_batch_changes_no_average():
    norm, activation = modules(training=True)
    x = torch.randn(0, C, H, W)
    ours = steps(norm_activation, *copy.deepcopy((norm, activation)), x)
    torch.testing.assert_close(ours, steps(two_modules, norm, activation, x))


@pytest.mark.parametrize("conv, axes", [("Conv1d", 1), ("Conv3d", 3)])
def test_other_convolutions_stay_apart(conv, axes):
    norm_cfg, act_cfg = dict(type="SyncBN"), dict(type="ReLU")
    layer = ConvModule(
        3, C, 1, conv_cfg=dict(type=conv), norm_cfg=norm_cfg, act_cfg=act_cfg
    )
    model = nn.Sequential(layer).eval()
    convert_activations(model)
    assert type(model[0]) is ConvModule and type(model[0].activate) is AGLU
    assert model(torch.randn(2, 3, *[4] * axes)).shape == (2, C, *[4] * axes)


def test_one_value_per_channel_is_refused():
    norm, activation = modules(training=True)
    with pytest.raises(ValueError, match="more than one value per channel"):
        norm_activation(torch.randn(1, C, 1, 1), norm, activation)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("norm", ["BN", "SyncBN", "reverted SyncBN"])
def test_a_converted_conv_module(training, padding_mode, norm):
    def build():
        torch.manual_seed(0)
        norm_cfg, act_cfg = dict(type=norm.split()[-1]), dict(type="ReLU6")
        options = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, padding_mode=padding_mode)
        return nn.Sequential(ConvModule(3, C, 3, padding=1, **options)).train(training)

    model, twin = build(), build()
    convert_activations(model, init=dict(lam=0.7, kappa=1.3))
    assert type(model[0]) is FusedConvModule
    if norm == "reverted SyncBN":
        model = revert_sync_batchnorm(model)
    x = torch.randn(N, 3, H, W)
    inputs = [*model.state_dict(keep_vars=True).values(), x]
    activation = model[0].activate
    y = model(x)
    twin[0].with_activation = False
    torch.testing.assert_close(y, activation(twin(x)))
    for ours, true in zip(model.buffers(), twin.buffers()):
        torch.testing.assert_close(ours, true)
    size = y.numel() * y.element_size()
    padded = 3 * (H + 2) * (W + 2) * N * 4 if padding_mode == "circular" else 0
    assert saved_bytes(lambda: model(x), inputs) < size + padded + 500
    assert torch.equal(model[0](x, activate=False), twin(x))
