"""Channel and spatial attention with an APA gate, as mmcv plugins."""

from __future__ import annotations

import torch
from mmcv.cnn import build_activation_layer
from mmengine.registry import MODELS
from torch import Tensor, nn


def _norm_and_mlp(
    in_channels: int, ratio: int, gate_cfg: dict, bias: bool
) -> tuple[nn.Module, nn.Sequential]:
    """Return the layers before a channel gate; only APA has a norm and a dropout."""
    if not 1 <= ratio <= in_channels:
        raise ValueError(
            f"in_channels={in_channels}, ratio={ratio}: expected "
            f"1 <= ratio <= in_channels; lower ratio"
        )
    adaptive = gate_cfg["type"] == "APA"
    mlp = nn.Sequential(
        nn.Linear(in_channels, in_channels // ratio, bias),
        nn.ReLU(inplace=True),
        nn.Linear(in_channels // ratio, in_channels, bias),
        nn.Dropout(0.1) if adaptive else nn.Identity(),
    )
    return nn.LayerNorm(in_channels) if adaptive else nn.Identity(), mlp


@MODELS.register_module()
class APASELayer(nn.Module):
    """Squeeze and excitation with an APA gate.

    ``y = x * gate(W2 relu(W1 norm(mean(x))))``. With an APA gate, a LayerNorm precedes
    the excitation and a Dropout of 0.1 ends it, as published; with any other gate there
    is neither, which is plain SE (Hu et al., CVPR 2018).
    Source: Alexandridis et al., ECCV 2024, arXiv 2407.08567.

    Use it in any of MMDetection's ResNets with
    ``plugins=[dict(cfg=dict(type='APASELayer'), position='after_conv3')]``.

    Args:
        in_channels: Channels C of the input.
        ratio: The excitation has C // ratio hidden channels.
        gate_cfg: Config of the gate, an activation layer; by default APA.

    Raises:
        ValueError: If ``ratio`` is not in [1, in_channels].
    """

    _abbr_ = "se"

    def __init__(
        self, in_channels: int, ratio: int = 16, gate_cfg: dict | None = None
    ) -> None:
        super().__init__()
        gate_cfg = dict(type="APA") if gate_cfg is None else gate_cfg
        self.norm, self.excitation = _norm_and_mlp(
            in_channels, ratio, gate_cfg, bias=False
        )
        self.gate = build_activation_layer(dict(gate_cfg))

    def gate_of(self, descriptor: Tensor) -> Tensor:
        """Return the channels' factors (N, C) from their means (N, C)."""
        return self.gate(self.excitation(self.norm(descriptor)))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (N, C, H, W) scaled per image and channel."""
        return x * self.gate_of(x.mean((2, 3)))[:, :, None, None]


class _ChannelGate(nn.Module):
    def __init__(self, in_channels: int, ratio: int, gate_cfg: dict) -> None:
        super().__init__()
        self.norm, self.mlp = _norm_and_mlp(in_channels, ratio, gate_cfg, bias=True)
        self.gate = build_activation_layer(dict(gate_cfg))

    def forward(self, x: Tensor) -> Tensor:
        mean, maximum = x.mean((2, 3)), x.amax((2, 3))
        score = self.mlp(self.norm(mean)) + self.mlp(self.norm(maximum))
        return x * self.gate(score)[:, :, None, None]


class _SpatialGate(nn.Module):
    def __init__(self, gate_cfg: dict) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)
        self.gate = build_activation_layer(dict(gate_cfg))

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack((x.amax(1), x.mean(1)), dim=1)
        return x * self.gate(self.bn(self.conv(pooled)))


@MODELS.register_module()
class APACBAM(nn.Module):
    """Convolutional block attention (CBAM, Woo et al., ECCV 2018) with APA gates.

    The channel gate applies one two-layer perceptron to the average- and the max-pooled
    features and adds the results; the spatial gate applies a 7x7 convolution with BN to
    the channels' maximum and mean. With APA gates, a LayerNorm precedes the perceptron
    and a Dropout of 0.1 ends it, as published (Alexandridis et al., ECCV 2024).

    Args:
        in_channels: Channels C of the input.
        ratio: The perceptron has C // ratio hidden channels.
        gate_cfg: Config of both gates, by default APA. APA without ``init`` starts at
            lam in U(0, 1) and kappa in U(0, 1), the published values for CBAM.

    Raises:
        ValueError: If ``ratio`` is not in [1, in_channels].
    """

    _abbr_ = "cbam"

    def __init__(
        self, in_channels: int, ratio: int = 16, gate_cfg: dict | None = None
    ) -> None:
        super().__init__()
        gate_cfg = dict(type="APA") if gate_cfg is None else dict(gate_cfg)
        if gate_cfg["type"] == "APA":
            gate_cfg.setdefault("init", dict(lam=(0.0, 1.0), kappa=(0.0, 1.0)))
        self.channel_gate = _ChannelGate(in_channels, ratio, gate_cfg)
        self.spatial_gate = _SpatialGate(gate_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (N, C, H, W) scaled per channel, then per position."""
        return self.spatial_gate(self.channel_gate(x))
