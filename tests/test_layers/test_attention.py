"""APASELayer and APACBAM: structure, values and use as mmcv plugins."""

import pytest
import torch
from mmdet.models.backbones import ResNet
from torch import nn

from apa_mmdet.layers import APA
from apa_mmdet.layers.attention import APACBAM, APASELayer


def test_se_with_sigmoid_is_plain_se():
    layer = APASELayer(32, ratio=4, gate_cfg=dict(type="Sigmoid"))
    x = torch.randn(2, 32, 5, 7)
    w1, w2 = (layer.excitation[i].weight for i in (0, 2))
    gate = ((x.mean((2, 3)) @ w1.T).relu() @ w2.T).sigmoid()
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])
    assert set(layer.state_dict()) == {"excitation.0.weight", "excitation.2.weight"}


def test_se_with_apa_has_the_published_parts():
    layer = APASELayer(32, ratio=4)
    assert isinstance(layer.gate, APA)
    assert isinstance(layer.norm, nn.LayerNorm)
    assert layer.excitation[3].p == 0.1
    assert layer.gate.lambda_param.shape == (1,)
    assert -1 <= layer.gate.kappa_param <= 0
    layer.eval()
    x = torch.randn(2, 32, 5, 7)
    gate = layer.gate(layer.excitation(layer.norm(x.mean((2, 3)))))
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


def test_cbam_values():
    layer = APACBAM(32, ratio=4).eval()
    for gate in (layer.channel_gate.gate, layer.spatial_gate.gate):
        assert 0 <= gate.kappa_param <= 1
    x = torch.randn(2, 32, 5, 7)
    channel = layer.channel_gate
    score = sum(
        channel.mlp(channel.norm(pooled)) for pooled in (x.mean((2, 3)), x.amax((2, 3)))
    )
    scaled = x * channel.gate(score)[:, :, None, None]
    spatial = layer.spatial_gate
    pooled = torch.stack((scaled.amax(1), scaled.mean(1)), 1)
    expected = scaled * spatial.gate(spatial.bn(spatial.conv(pooled)))
    torch.testing.assert_close(layer(x), expected)


def test_cbam_with_sigmoid_has_no_norm():
    layer = APACBAM(32, gate_cfg=dict(type="Sigmoid"))
    assert not any("norm" in key or "lambda" in key for key in layer.state_dict())


@pytest.mark.parametrize("kind, name", [("APASELayer", "se"), ("APACBAM", "cbam")])
def test_plugin_in_mmdets_own_resnet(kind, name):
    model = ResNet(
        50,
        base_channels=16,
        plugins=[dict(cfg=dict(type=kind), position="after_conv3")],
    )
    model.train()
    outputs = model(torch.randn(2, 3, 64, 64))
    sum(out.sum() for out in outputs).backward()
    gates = {
        key: param
        for key, param in model.named_parameters()
        if key.endswith("lambda_param")
    }
    assert len(gates) == 16 * (1 if name == "se" else 2)
    for key, param in gates.items():
        assert f".{name}." in key
        assert param.grad is not None and param.grad.isfinite().all()


@pytest.mark.parametrize("layer", [APASELayer, APACBAM])
def test_ratio_must_fit(layer):
    with pytest.raises(ValueError, match="in_channels=8, ratio=16.*lower ratio"):
        layer(8)
