"""Residual blocks that keep convolutions' outputs alone while statistics are fixed."""

from __future__ import annotations

from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from ...conversion.rewriting import ActivationSites, extend
from ...layers.attention import APASELayer
from ...ops import norm_aglu
from .frozen_norm import (
    can_fold,
    has_hooks,
    is_fixed,
    normed_activation,
    parameters,
    statistics,
)


class FoldedBlock:
    """Mixin for mmdet's residual blocks: norm, gate, addition and AGLU as one.

    Subclasses say where a site's activation is, and what comes before the last norm.
    """

    sites = 0

    def activation(self, site: int) -> nn.Module:
        """Return the activation after the norm ``site``, counted from 1."""
        raise NotImplementedError

    def before_last_norm(self, x: Tensor) -> Tensor:
        """Return the output of the last convolution."""
        raise NotImplementedError

    def gated(self, x: Tensor) -> Tensor:
        """Return what the plugins after the last norm make of ``x``."""
        return x

    def gate(self) -> APASELayer | None:
        """Return the channel attention after the last norm, if there is one."""
        return None

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the addition."""
        return getattr(self, f"norm{self.sites}")

    def can_fold(self) -> bool:
        """Tell whether the end of the block may be computed as one operation."""
        return can_fold(self.last_norm, self.activation(self.sites))

    def folded_forward(self, x: Tensor) -> Tensor:
        """Return the block's output; ``can_fold()`` is to be true."""
        return self._folded_end(self.before_last_norm(x), x)

    def _folded_end(self, x: Tensor, identity: Tensor) -> Tensor:
        """Last norm, gate, addition and activation, which keep ``x`` and identity."""
        *norm, eps = statistics(self.last_norm)
        gate = self.gate()
        factors = None
        if gate is not None:
            # The squeeze of a norm's result is the norm of the squeeze.
            weight, bias, mean, var = norm
            squeezed = F.batch_norm(x.mean((2, 3)), mean, var, weight, bias, eps=eps)
            factors = gate.gate_of(squeezed)
        identity_norm = None, None, None, None, 0.0
        if self.downsample is not None and not has_hooks(self.downsample):
            *layers, last = self.downsample
            for layer in layers:
                identity = layer(identity)
            if is_fixed(last):
                identity_norm = statistics(last)
            else:
                identity = last(identity)
        elif self.downsample is not None:
            identity = self.downsample(identity)
        small = parameters(self.activation(self.sites))
        return norm_aglu(x, *norm, eps, *small, factors, identity, *identity_norm)

    def _normed(self, x: Tensor, site: int) -> Tensor:
        return normed_activation(x, getattr(self, f"norm{site}"), self.activation(site))


class FoldedBasicBlock(FoldedBlock):
    """Mixin for BasicBlock."""

    sites = 2

    def before_last_norm(self, x: Tensor) -> Tensor:
        """Return the output of the second convolution."""
        return self.conv2(self._normed(self.conv1(x), 1))


class FoldedBottleneck(FoldedBlock):
    """Mixin for Bottleneck."""

    sites = 3

    def before_last_norm(self, x: Tensor) -> Tensor:
        """Return the output of the third convolution."""
        x = self._normed(self.conv1(x), 1)
        x = self._normed(self.conv2(self._plugged(x, 1)), 2)
        return self.conv3(self._plugged(x, 2))

    def _plugged(self, x: Tensor, position: int) -> Tensor:
        if not self.with_plugins:
            return x
        return self.forward_plugin(
            x, getattr(self, f"after_conv{position}_plugin_names")
        )

    def gated(self, x: Tensor) -> Tensor:
        """Return what the plugins after the third norm make of ``x``."""
        return self._plugged(x, 3)

    def gate(self) -> APASELayer | None:
        """Return the channel attention after the third norm, if there is one."""
        names = self.after_conv3_plugin_names if self.with_plugins else []
        return getattr(self, names[0]) if names else None

    def can_fold(self) -> bool:
        """Tell whether the end of the block may be computed as one operation."""
        names = self.after_conv3_plugin_names if self.with_plugins else []
        gate = self.gate()
        return super().can_fold() and (
            not names
            or (len(names) == 1 and type(gate) is APASELayer and not has_hooks(gate))
        )


class _Converted:
    """Mixin for blocks whose ``self.relu`` a conversion split into sites."""

    def activation(self, site: int) -> nn.Module:
        return self.relu[str(site - 1)]

    def can_fold(self) -> bool:
        return isinstance(self.relu, ActivationSites) and super().can_fold()

    def forward(self, x: Tensor) -> Tensor:
        if (self.with_cp and x.requires_grad) or not self.can_fold():
            return super().forward(x)
        return self.folded_forward(x)


class _ConvertedBasicBlock(_Converted, FoldedBasicBlock):
    pass


class _ConvertedBottleneck(_Converted, FoldedBottleneck):
    pass


extend(BasicBlock, _ConvertedBasicBlock)
extend(Bottleneck, _ConvertedBottleneck)
extend(ResNeXtBottleneck, _ConvertedBottleneck)
