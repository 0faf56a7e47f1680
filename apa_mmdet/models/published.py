"""The authors' checkpoints: their keys and values beside this package's.

Three kinds of file are known (github.com/kostas1515/AGLU):

- detection: MMEngine's, keys ``backbone.layer1.0.unirect1.lambda_param``;
- backbone: the same keys without ``backbone.``;
- classification: a dict of ``model``, ``optimizer``, ``args`` and others, perhaps
  ``model_ema`` (keys under ``module.``); backbone keys and ``fc.*``.

The attention's gate is ``uniact``, in older files ``unact``. Whatever is not listed in
``_NAMES`` has mmdet's names in both.

Their code does not compute with every value as it is stored, so values change on the
way to this package's names, and only then:

- lambda is at least 1e-4, except that a classifier's activations use
  relu(lambda) + 1e-8, which is lambda itself wherever it is positive;
- files without ``unirect`` come from older code with ReLU in the blocks. Its gates
  keep lambda in [1e-4, 10] and kappa within 3.5 (SE) or 3.25 (CBAM) of zero.

Their programs evaluate, and start detectors from, ``model``; they use ``model_ema``
only under an option that none of their commands sets. So ``model`` is taken here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import mismatches

# Their names within a residual block, and ours.
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
_OLD_NAMES = {
    theirs.replace("uniact", "unact"): ours
    for theirs, ours in _NAMES.items()
    if "uniact" in theirs
}
_FROM_PUBLISHED = {**_NAMES, **_OLD_NAMES}
_TO_PUBLISHED = {ours: theirs for theirs, ours in _NAMES.items()}

_BLOCK = re.compile(r"((?:.+\.)?layer\d+\.\d+\.)(.+)")
_STEM = re.compile(r"(?:.+\.)?relu\.(?:lambda|kappa)_param")
_WEIGHTS = ("model", "model_ema")


def _renamed(key: str, names: Mapping[str, str]) -> str:
    block = _BLOCK.fullmatch(key)
    if block is None:
        return key
    for old, new in names.items():
        if block[2].startswith(old):
            return block[1] + new + block[2][len(old) :]
    return key


def is_published(keys: Iterable[str]) -> bool:
    """Tell whether keys are in the authors' spelling, wherever that differs."""
    return any(_renamed(key, _FROM_PUBLISHED) != key for key in keys)


def is_classification_file(checkpoint: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint nests its weights as a classification file does."""
    return any(isinstance(checkpoint.get(name), Mapping) for name in _WEIGHTS)


def weights_of(
    checkpoint: Mapping[str, Any], weights: str | None = None
) -> tuple[dict[str, Tensor], bool]:
    """Return a checkpoint's weights, and whether they are a classifier's.

    A ``module.`` before the names is dropped, and so is a classifier's ``fc.*``.

    Args:
        checkpoint: What a file holds, or a state dict itself.
        weights: ``'model'`` or ``'model_ema'`` of a classification file; by default
            the first of them that is there.

    Raises:
        ValueError: If there are no weights, or not those asked for.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"holds a {type(checkpoint).__name__}, expected a dict of weights"
        )
    nested = is_classification_file(checkpoint)
    if weights is not None and not isinstance(checkpoint.get(weights), Mapping):
        raise ValueError(
            f"weights={weights!r}: the file has no such entry, only "
            f"{_some(checkpoint)}; leave weights out"
        )
    if nested:
        name = weights or next(
            name for name in _WEIGHTS if isinstance(checkpoint.get(name), Mapping)
        )
        state = checkpoint[name]
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
            f"{_some(checkpoint)}"
        )
    # A detector's parts have prefixes, so these belong to a classifier.
    has_head = any(key.startswith("fc.") for key in state)
    if nested or (has_head and is_published(state)):
        state = {
            key: value
            for key, value in state.items()
            if key != "n_averaged" and not re.match(r"fc\d?\.", key)
        }
        return state, True
    return state, False


def from_published(
    state_dict: Mapping[str, Tensor], classification: bool = False
) -> dict[str, Tensor]:
    """Return weights under this package's names, with the values their code uses.

    Weights that are under these names already come back unchanged.

    Args:
        state_dict: Weights of a detector or a backbone; left as it is.
        classification: Whether they come from a classification file.

    Raises:
        ValueError: If the old and the new spelling of a key are both there.
    """
    if not is_published(state_dict):
        return dict(state_dict)
    older = not any(".unirect" in key for key in state_dict)
    renamed = {}
    for key, value in state_dict.items():
        name = _renamed(key, _FROM_PUBLISHED)
        if name in renamed:
            raise ValueError(
                f"{key} is in the file under two spellings; remove one of them"
            )
        renamed[name] = _as_used(name, value, classification, older)
    return renamed


def to_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the authors' names, with unchanged values."""
    return {_renamed(key, _TO_PUBLISHED): v for key, v in state_dict.items()}


def _as_used(key: str, value: Tensor, classification: bool, older: bool) -> Tensor:
    """Return what the published code computes with; ``key`` is in our names."""
    name = key.rpartition(".")[2]
    if name not in ("lambda_param", "kappa_param"):
        return value
    if not (_BLOCK.fullmatch(key) or _STEM.fullmatch(key)):
        return value
    is_gate = ".gate." in key
    if name == "kappa_param":
        bound = 3.25 if ".cbam." in key else 3.5
        return value.clamp(-bound, bound) if is_gate and older else value
    if classification and not is_gate:
        return torch.where(value > 0, value, torch.full_like(value, 1e-8))
    return value.clamp(min=1e-4, max=10.0 if is_gate and older else None)


def adapt(
    state_dict: MutableMapping[str, Any], prefix: str, backbone: nn.Module
) -> None:
    """Turn an authors' file into this package's form, in place, while it is loaded.

    Backbones call it with what they are given to load. A state dict that is not from
    the authors stays as it is.

    Args:
        state_dict: What is being loaded.
        prefix: How the backbone's keys begin in it.
        backbone: The module that loads it.

    Raises:
        RuntimeError: If the file is of another architecture than the backbone.
    """
    own = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    nested = is_classification_file(own)
    if not nested and not is_published(own):
        return
    weights, classification = weights_of(own)
    published = is_published(weights)
    if not any(key.startswith("layer1.") for key in weights):
        # A whole detector's file, given to the backbone alone.
        part = "backbone."
        found = [key for key in weights if key.startswith(part)]
        weights = {key.removeprefix(part): weights[key] for key in found} or weights
    weights = from_published(weights, classification)
    if published:
        _require_fit(weights, backbone.state_dict())
    for key in own:
        del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in weights.items()})


def _require_fit(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    problems = mismatches(file, model)
    if not problems:
        return
    unknown = [key for key in file if key not in model]
    missing = [key for key in model if key not in file]
    listed = [
        f"{what}: {_some(keys)}"
        for what, keys in (("not in the model", unknown), ("not in the file", missing))
        if keys
    ]
    raise RuntimeError(
        "this published checkpoint is of another architecture: "
        + ". ".join([" and ".join(problems), *listed])
    )


def _some(keys: Iterable[object], limit: int = 4) -> str:
    keys = [str(key) for key in keys]
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return (", ".join(keys[:limit]) or "nothing") + more
