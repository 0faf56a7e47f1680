"""Whether a checkpoint contains the weights that a run needs.

MMEngine loads what fits, mentions the rest in its log, and continues with the initial
values of what did not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..models.published_checkpoints import weights_of

_ADAPTIVE = (".lambda_param", ".kappa_param")
_STATISTICS = (".running_mean", ".running_var")


def load_weights(path: str) -> Mapping[str, Any]:
    """Return the content of a local or remote checkpoint.

    Raises:
        ValueError: If it cannot be read or contains no weights.
    """
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, "cpu", logger="silent")
    except (OSError, RuntimeError, UnpicklingError) as error:
        where = f"{path}: " if "://" in path else ""  # a local file's error names it
        raise ValueError(f"checkpoint {where}{error}") from None
    try:
        weights_of(checkpoint)
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from None
    return checkpoint


def is_backbone(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint contains only a ResNet, as backbone or classifier.

    None of its keys is a detector's, so that MMEngine would load nothing.
    """
    weights, _ = weights_of(checkpoint)
    return any(key.startswith("layer1.") for key in weights)


def load_detector(path: str) -> Mapping[str, Any]:
    """Return the content of a detector's checkpoint.

    Raises:
        ValueError: As :func:`load_weights`, or if it contains only a backbone.
    """
    checkpoint = load_weights(path)
    refuse_backbone(checkpoint, path)
    return checkpoint


def refuse_backbone(checkpoint: Mapping[str, Any], path: str) -> None:
    """Raise a ValueError if the checkpoint in a file contains only a backbone."""
    if is_backbone(checkpoint):
        raise ValueError(
            f"checkpoint {path} contains only a backbone, expected a detector; "
            f"to train one from it, set model.backbone.init_cfg to "
            f"dict(type='Pretrained', checkpoint='{path}')"
        )


def check_weights(
    model: nn.Module, checkpoint: Mapping[str, Any], path: str, alternative: str = ""
) -> None:
    """Check that a model can be evaluated with a checkpoint, and load it.

    All its parameters and the statistics of its norms must be in the file. ``lambda``
    and ``kappa`` may be missing, because activations are initialised to stand in for
    those that they replace; but an activation that the file has and the model lacks
    changes what the model computes. Other weights that the model lacks do not matter.

    Args:
        model: The model that the Runner built.
        checkpoint: The content of the file.
        path: The file, for the message.
        alternative: What the message offers besides giving the right config.

    Raises:
        ValueError: If a part of the model would keep its initial values.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    problems = _mismatches(model, checkpoint)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(
            f"checkpoint {path} {problems[0]}{more}, so the model would not be the one "
            f"that was trained; give the config that it was trained with{alternative}"
        )


def _mismatches(model: nn.Module, checkpoint: Mapping[str, Any]) -> list[str]:
    saved = checkpoint.get("state_dict", checkpoint)
    weights = OrderedDict((k.removeprefix("module."), v) for k, v in saved.items())
    weights._metadata = getattr(saved, "_metadata", None)
    own = model.state_dict()
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        problems = [
            f"has {key} of shape {tuple(weights[key].shape)}, expected "
            f"{tuple(value.shape)} as in the config"
            for key, value in own.items()
            if isinstance(weights.get(key), Tensor)
            and weights[key].shape != value.shape
        ]
        return problems or [f"does not fit: {error}"]
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    # The authors' keys are renamed while they are loaded.
    if parameters <= set(missing):
        return [f"has none of the model's weights; its first is {next(iter(weights))}"]
    needed = [key for key in missing if key in parameters or key.endswith(_STATISTICS)]
    modules = {name for name, _ in model.named_modules()}
    return [f"lacks {key}" for key in needed if not key.endswith(_ADAPTIVE)] + [
        f"has {key}, an activation that the config lacks"
        for key in unexpected
        if key.endswith(_ADAPTIVE) and key.rsplit(".", 2)[0] in modules
    ]
