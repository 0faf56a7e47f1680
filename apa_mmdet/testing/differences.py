"""What differs between a converted model and the unconverted one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..optim.groups import NAMES


def flatten(name: str, result: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors of a nested result with dotted names."""
    if isinstance(result, Tensor):
        if result.is_floating_point() and result.numel():
            yield name, result.clone()  # later activations may work in place
    elif isinstance(result, (list, tuple)):
        yield from flatten(name, dict(enumerate(result)))
    elif isinstance(result, Mapping):
        for key, value in result.items():
            yield from flatten(f"{name}.{key}", value)


def relative_differences(
    expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return by name the largest difference over the largest expected element."""
    ratios = {}
    for name, value in expected.items():
        ratio = (actual[name] - value).abs().max() / value.abs().max()
        ratios[name] = float(ratio) if ratio.isfinite() else float("inf")
    return ratios


def key_differences(base: nn.Module, model: nn.Module) -> list[str]:
    """Return a sentence for each key of a state dict that a conversion changed.

    New keys of λ and κ are expected and not reported.
    """
    before, after = base.state_dict(), model.state_dict()
    sentences = []
    for key, value in before.items():
        if key not in after:
            sentences.append(f"{key} is missing")
        elif after[key].shape != value.shape:
            sentences.append(f"{key} has a different shape")
    new = after.keys() - before.keys()
    sentences += [f"{key} is new" for key in new if not key.endswith(NAMES)]
    if list(before) != [key for key in after if key in before]:
        sentences.append("the order of the keys has changed")
    return sentences


def gradient_differences(
    before: Mapping[str, Tensor | None], after: Mapping[str, Tensor | None]
) -> list[str]:
    """Return a sentence for each gradient that is not bit for bit the same."""
    sentences = []
    for key, expected in before.items():
        value = after[key]
        if (value is None) != (expected is None):
            sentences.append(f"{key} has a gradient in one of the models only")
        elif expected is not None and not torch.equal(value, expected):
            off = (value - expected).abs().max() / expected.abs().max()
            sentences.append(
                f"the gradient of {key} differs by {off:.1g} of its largest element"
            )
    return sentences


def neighbouring(path: str, gradients: Mapping[str, Tensor | None]) -> list[Tensor]:
    """Return the gradients of the nearest weights around an activation."""
    while path:
        path = path.rpartition(".")[0]
        prefix = f"{path}." if path else ""
        nearest = [g for key, g in gradients.items() if key.startswith(prefix)]
        if nearest:
            return [gradient for gradient in nearest if gradient is not None]
    return []
