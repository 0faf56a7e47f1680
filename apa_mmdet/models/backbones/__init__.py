"""Backbones with learnable activations."""

from .apa_resnet import APAResNet, APAResNeXt

__all__ = ["APAResNeXt", "APAResNet"]
