"""Small models of other libraries with random weights, to check the conversion on."""

from .diffusers import DIFFUSERS
from .model import LibraryModel
from .transformers import TRANSFORMERS
from .vision import TIMM, TORCHVISION

MODELS = [*TRANSFORMERS, *DIFFUSERS, *TIMM, *TORCHVISION]

__all__ = ["MODELS", "LibraryModel"]
