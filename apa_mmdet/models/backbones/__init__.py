"""APAResNet and APAResNeXt, with learnable activations, and EfficientNet-Lite."""

from .apa_resnet import APAResNet, APAResNeXt
from .efficientnet_lite import EfficientNetLite

__all__ = ["APAResNeXt", "APAResNet", "EfficientNetLite"]
