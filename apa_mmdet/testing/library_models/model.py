"""How to build a model of another library, and what to run it with."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class LibraryModel:
    """How to build a model, and what to run it with.

    Attributes:
        library: ``transformers``, ``diffusers``, ``timm`` or ``torchvision``.
        name: The model's class in transformers and diffusers, its name in timm and
            torchvision.
        options: Of its configuration, or of the function that builds it.
        inputs: By argument of the model: the shape of a tensor (a tuple), the numbers
            in one (a list), a function that returns it, or the argument itself.
        training: Further inputs where it trains.
        note: What is special about the options.
    """

    library: str
    name: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def title(self) -> str:
        """The name and what is special, as in a table."""
        return f"{self.name}, {self.note}" if self.note else self.name

    def build(self) -> nn.Module:
        """Return the model in eval mode."""
        library = importlib.import_module(self.library)
        if self.library == "transformers":
            cls = getattr(library, self.name)
            model = cls(cls.config_class(**self.options))
        elif self.library == "diffusers":
            model = getattr(library, self.name)(**self.options)
        elif self.library == "timm":
            model = library.create_model(self.name, **self.options)
        else:
            model = library.models.get_model(self.name, **self.options)
        return model.eval()

    def arguments(self, training: bool = False) -> dict[str, Any]:
        """Return the model's keyword arguments; tokens are 3 to 49."""
        inputs = {**self.inputs, **self.training} if training else self.inputs
        return {name: _argument(name, value) for name, value in inputs.items()}


def _argument(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        is_text = name.endswith("_ids")
        return torch.randint(3, 50, value) if is_text else torch.randn(value)
    if isinstance(value, list):
        return torch.tensor(value)
    return value() if callable(value) else value


def group(library: str, names: str, *args: Any, **kwargs: Any) -> list[LibraryModel]:
    """Return models that differ in their name only; ``names`` are apart by spaces."""
    return [LibraryModel(library, name, *args, **kwargs) for name in names.split()]
