"""The authors' checkpoints: their keys and values, and this package's.

There are three kinds of files (github.com/kostas1515/AGLU):

- detection: MMEngine's format, with keys such as
  ``backbone.layer1.0.unirect1.lambda_param``;
- backbone: the same keys without ``backbone.``;
- classification: a dict with ``model``, ``optimizer``, ``args`` and others, sometimes
  ``model_ema`` (keys with ``module.``); backbone keys and ``fc.*``, of the networks for
  CIFAR ``linear.*``.

The attention gate is called ``uniact``, in older files ``unact``. Names that are not
listed in ``_NAMES`` are mmdet's in both spellings.

The authors' code does not compute with every value as it is stored. So values change,
but only when keys are renamed from the authors' names to this package's:

- lambda is at least 1e-4; but a classifier's activations use relu(lambda) + 1e-8, which
  is lambda itself if it is positive;
- files without ``unirect`` come from older code with ReLU in the blocks. Its gates
  limit lambda to [1e-4, 10] and |kappa| to 3.5 (SE) or 3.25 (CBAM).

Their programs evaluate ``model``, and initialise detectors from it; ``model_ema`` is
used only with an option that none of their commands sets. So the default here is
``model``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import backbone_weights, mismatches

# The authors' names in a residual block, and this package's.
_NAMES = {
    **{f"unirect{site}.": f"act{site}." for site in (1, 2, 3)},
    "se.uniact.": "se.gate.",
    "cbam.ChannelGate.norm.": "cbam.channel_gate.norm.",
    "cbam.ChannelGate.mlp.1.": "cbam.channel_gate.mlp.0.",
    "cbam.ChannelGate.mlp.3.": "cbam.channel_gate.mlp.2.",
    "cbam.ChannelGate.uniact.": "cbam.channel_gate.gate.",
    "cbam.SpatialGate.spatial.conv.": "cbam.spatial_gate.conv.",
    "cbam.SpatialGate.spatial.bn.": "cbam.spatial_gate.bn.",
    "cbam.SpatialGate.uniact.": "cbam.spatial_gate.gate.",
}
_PUBLISHED_NAMES = {ours: theirs for theirs, ours in _NAMES.items()}

_HEAD = re.compile(r"(?:fc\d?|linear)\.")
_BLOCK = re.compile(r"((?:.+\.)?layer\d+\.\d+\.)(.+)")
_STEM = re.compile(r"(?:.+\.)?relu\.(?:lambda|kappa)_param")


def _renamed(key: str, names: Mapping[str, str]) -> str:
    block = _BLOCK.fullmatch(key)
    if block is None:
        return key
    name = block[2].replace(".unact.", ".uniact.")
    for old, new in names.items():
        if name.startswith(old):
            return block[1] + new + name.removeprefix(old)
    return key


def is_published(keys: Iterable[str]) -> bool:
    """Return whether any key is spelled as only the authors spell it."""
    return any(_renamed(key, _NAMES) != key for key in keys)


def _nested_weights(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the entries in which a classification file nests its weights."""
    names = ("model", "model_ema")
    return [name for name in names if isinstance(checkpoint.get(name), Mapping)]


def weights_of(
    checkpoint: Mapping[str, Any], weights: str | None = None
) -> tuple[dict[str, Tensor], bool]:
    """Return a checkpoint's weights, and whether they belong to a classifier.

    The prefix ``module.`` and a classifier's ``fc.*`` and ``linear.*`` are dropped.

    Args:
        checkpoint: The content of a file, or a state dict.
        weights: ``'model'`` or ``'model_ema'`` of a classification file; by default
            the first one that exists.

    Raises:
        ValueError: If the checkpoint contains no weights, or not the requested ones.
    """
    state, is_nested = _all_weights(checkpoint, weights)
    # In a detector every key has a prefix, so fc.* belongs to a classifier.
    has_head = any(_HEAD.match(key) for key in state)
    if not is_nested and not (has_head and is_published(state)):
        return state, False
    state.pop("n_averaged", None)
    return {key: value for key, value in state.items() if not _HEAD.match(key)}, True


def _all_weights(
    checkpoint: Mapping[str, Any], weights: str | None = None
) -> tuple[dict[str, Tensor], bool]:
    """Return a checkpoint's weights, and whether they were nested in an entry."""
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"contains a {type(checkpoint).__name__}, expected a dict of weights"
        )
    nested = _nested_weights(checkpoint)
    if weights is not None and weights not in nested:
        raise ValueError(
            f"weights={weights!r}: the file has no such entry, only "
            f"{_listed(checkpoint)}; leave weights out"
        )
    if nested:
        state = checkpoint[weights or nested[0]]
    else:
        state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping):
        raise ValueError(
            f"its 'state_dict' is a {type(state).__name__}, expected a dict of weights"
        )
    state = {
        key.removeprefix("module."): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    if not state:
        raise ValueError(
            f"expected weights by name, or a dict with 'state_dict' or 'model'; got "
            f"{_listed(checkpoint)}"
        )
    return state, bool(nested)


def from_published(
    state_dict: Mapping[str, Tensor], classification: bool = False
) -> dict[str, Tensor]:
    """Return weights with this package's names and the values the authors' code uses.

    Weights that already have these names are returned unchanged; those of a
    classification file have other values. Raises a ValueError if both the old and the
    new spelling of a key are present.
    """
    if not is_published(state_dict):
        return dict(state_dict)
    is_old = not any(".unirect" in key for key in state_dict)
    renamed = {}
    for key, value in state_dict.items():
        name = _renamed(key, _NAMES)
        if name in renamed:
            raise ValueError(
                f"{key} is in the file under two spellings; remove one of them"
            )
        renamed[name] = _effective_value(name, value, classification, is_old)
    return renamed


def to_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the authors' names and unchanged values."""
    return {_renamed(key, _PUBLISHED_NAMES): v for key, v in state_dict.items()}


def _effective_value(
    key: str, value: Tensor, classification: bool, is_old: bool
) -> Tensor:
    """Return the value the authors' code computes with; `key` is this package's."""
    name = key.rpartition(".")[2]
    if name not in ("lambda_param", "kappa_param"):
        return value
    if not (_BLOCK.fullmatch(key) or _STEM.fullmatch(key)):
        return value
    is_gate = ".gate." in key
    if name == "kappa_param":
        bound = 3.25 if ".cbam." in key else 3.5
        return value.clamp(-bound, bound) if is_gate and is_old else value
    if classification and not is_gate:
        return torch.where(value > 0, value, torch.full_like(value, 1e-8))
    return value.clamp(min=1e-4, max=10.0 if is_gate and is_old else None)


def adapt_published(
    state_dict: MutableMapping[str, Any], prefix: str, backbone: nn.Module
) -> None:
    """Convert an authors' checkpoint in place while ``backbone`` loads it.

    Other state dicts are not changed. ``prefix`` is that of the backbone's keys. Raises
    a RuntimeError if the architecture in the file is not the backbone's, or if the keys
    are those of a whole model of MMDetection or MMPretrain, of which none would fit.
    """
    own = _below(prefix, state_dict)
    if _nested_weights(own) or is_published(own):
        _replace(prefix, state_dict, _weights_for(backbone, own))
    elif not own.keys() & backbone.state_dict().keys() and any(
        key.startswith("backbone.") for key in own
    ):
        raise RuntimeError(
            "the checkpoint has a whole model, whose backbone has keys such as "
            "'backbone.conv1.weight'; to load only that, add prefix='backbone.' to "
            "init_cfg=dict(type='Pretrained', ...)"
        )


def adapt_published_classifier(
    state_dict: MutableMapping[str, Any], prefix: str, backbone: nn.Module
) -> None:
    """Convert an authors' classification file in place while a classifier loads it.

    The backbone's keys get the prefix ``backbone.``, and ``fc.*`` (``linear.*``)
    becomes ``head.fc.*``. Otherwise as :func:`adapt_published`; ``prefix`` is that of
    the classifier's keys.
    """
    own = _below(prefix, state_dict)
    is_bare = any(key.startswith("layer1.") for key in own)
    if not _nested_weights(own) and not (is_bare and is_published(own)):
        return
    weights = _weights_for(backbone, own)
    weights = {f"backbone.{key}": value for key, value in weights.items()}
    for key, value in _all_weights(own)[0].items():
        if layer := _HEAD.match(key):
            weights[f"head.fc.{key[layer.end() :]}"] = value
    _replace(prefix, state_dict, weights)


def _below(prefix: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }


def _replace(
    prefix: str, state_dict: MutableMapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]
    state_dict.update({prefix + key: value for key, value in weights.items()})


def _weights_for(backbone: nn.Module, own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a backbone's weights from what an authors' file contains."""
    weights, classification = weights_of(own)
    published = is_published(weights)
    # The file may be a whole detector's, loaded into the backbone only.
    weights = from_published(backbone_weights(weights), classification)
    model = backbone.state_dict()
    problems = mismatches(weights, model) if published else []
    if problems:
        details = [" and ".join(problems)]
        if unknown := [key for key in weights if key not in model]:
            details.append(f"not in the model: {_listed(unknown)}")
        if missing := [key for key in model if key not in weights]:
            details.append(f"not in the file: {_listed(missing)}")
        raise RuntimeError(
            f"this published checkpoint has another architecture: {'. '.join(details)}"
        )
    return weights


def _listed(keys: Iterable[object], limit: int = 4) -> str:
    keys = [str(key) for key in keys]
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return (", ".join(keys[:limit]) or "nothing") + more
