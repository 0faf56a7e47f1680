"""SEResNetCIFAR: its size, its fused and unfused paths, its errors."""

import pytest
import torch

pytest.importorskip("mmpretrain", reason="apa_mmdet.classification needs mmpretrain")

from apa_mmdet.classification.se_resnet_cifar import SEResNetCIFAR
from apa_mmdet.layers import AGLU, APA
from apa_mmdet.ops import use_implementation


def build(**kwargs):
    torch.manual_seed(0)
    return SEResNetCIFAR(**kwargs)


def test_size_is_that_of_resnet_32_plus_se():
    model = build(gate_cfg=dict(type="Sigmoid"))
    count = sum(parameter.numel() for parameter in model.parameters())
    # He et al.: 0.46 M with a classifier of 10 classes (650); SE adds 2 C²/4 a block.
    se = sum(5 * 2 * channels**2 // 4 for channels in (16, 32, 64))
    assert count - se == 464_154 - 650
    outs = build(out_indices=(0, 1, 2))(torch.randn(2, 3, 32, 32))
    assert [tuple(out.shape[1:]) for out in outs] == [
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
    ]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gate", ["Sigmoid", "APA"])
def test_fused_and_plain_agree(gate, training):
    act_cfg = dict(type="AGLU")
    model = build(depth=14, act_cfg=act_cfg, gate_cfg=dict(type=gate)).double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    results = []
    for implementation in ("auto", "plain"):
        model.load_state_dict(state)
        model.train(training).zero_grad()
        with use_implementation(implementation):
            (out,) = model(x)
            out.square().mean().backward()
        grads = {key: p.grad.clone() for key, p in model.named_parameters()}
        buffers = {key: b.clone() for key, b in model.named_buffers()}
        results.append((out.detach(), grads, buffers))
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("act", ["ReLU", "AGLU"])
@pytest.mark.parametrize("gate", ["Sigmoid", "APA"])
def test_options(act, gate):
    model = build(act_cfg=dict(type=act), gate_cfg=dict(type=gate))
    modules = list(model.modules())
    assert sum(type(module) is AGLU for module in modules) == 31 * (act == "AGLU")
    assert sum(type(module) is APA for module in modules) == 15 * (gate == "APA")
    has_norm = any(isinstance(module, torch.nn.LayerNorm) for module in modules)
    assert has_norm == (gate == "APA")
    assert model.layer3[0].se.excitation[0].weight.shape == (16, 64)
    model.init_weights()
    std = model.layer3[2].conv1.weight.std().item()
    assert std == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(depth=50 + 1), "depth=51.*expected 6 n"),
        (dict(depth="32"), "depth='32'"),
        (dict(out_indices=(3,)), r"out_indices=\(3,\)"),
    ],
)
def test_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        build(**settings)
