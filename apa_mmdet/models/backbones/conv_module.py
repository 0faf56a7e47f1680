"""mmcv's ConvModule whose batch norm and AGLU are one operation."""

from __future__ import annotations

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from ...layers import AGLU
from .folding import can_fold, norm_activation


class FusedConvModule(ConvModule):
    """A ConvModule that computes its norm and AGLU together where that is possible.

    A conversion turns the ConvModules to which it gave an AGLU into these.
    """

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """Return what ConvModule does."""
        if not (activate and norm and self._can_fold()):
            return super().forward(x, activate, norm)
        if self.with_explicit_padding:
            x = self.padding_layer(x)
        return norm_activation(self.conv(x), self.norm, self.activate)

    def _can_fold(self) -> bool:
        return (
            self.order == ("conv", "norm", "act")
            and self.with_norm
            and self.with_activation
            and self.efficient_conv_bn_eval_forward is None
            and can_fold(self.norm, self.activate)
        )


def fuse_conv_modules(model: nn.Module) -> None:
    """Turn the ConvModules with a batch norm and an AGLU into FusedConvModules."""
    for module in model.modules():
        if (
            type(module) is ConvModule
            and isinstance(module.norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
            and type(getattr(module, "activate", None)) is AGLU
        ):
            module.__class__ = FusedConvModule
