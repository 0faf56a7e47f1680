"""Starting values of what a checkpoint lacks, where a library sets them itself.

``from_pretrained`` of transformers builds a model without memory for its weights, reads
those that the checkpoint has, allocates the others without setting them, and calls the
``_init_weights(module)`` of the nearest model around each module that has any. Those
methods know the modules of their own library; of others, the values would be whatever
was in memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ..layers import AGLU, APA


def keep_starts(model: nn.Module) -> None:
    """Let ``_init_weights(module)``, where a model has it, know the activations.

    Not only the model's own, since models contain others, as ``LlamaForCausalLM`` does
    ``LlamaModel``, each of which is asked about what is nearest to it.
    """
    for module in model.modules():
        if callable(getattr(type(module), "_init_weights", None)):
            # On the instance: a class made for it would replace the one by whose name
            # the model is saved. A partial, unlike a closure, can be pickled.
            module._init_weights = partial(_init_weights, module)


def _init_weights(owner: nn.Module, *args: Any, **kwargs: Any) -> Any:
    given = next(iter((*args, *kwargs.values())), None)
    if isinstance(given, (AGLU, APA)):
        return given.reset_parameters()
    return type(owner)._init_weights(owner, *args, **kwargs)
