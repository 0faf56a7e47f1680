"""Library-specific knowledge that cannot be read from a module's code.

The conversion itself knows only torch. A package that knows more about particular
classes describes them as :class:`ModelRules` and registers them with
:func:`add_rules`. ``apa_mmdet.models.conversion_rules`` does so for MMDetection.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList


@dataclass(frozen=True)
class BlockConverter:
    """How modules of one class are converted, in place of rewriting their source.

    Attributes:
        sites: For each site, by the name of its activation in the converted module, the
            attribute that the module calls there now.
        convert: Called with the module and its activations by name. Of the sites that
            are to stay fixed, it gets the fixed activations.
    """

    sites: Mapping[str, str]
    convert: Callable[[nn.Module, Mapping[str, nn.Module]], None]


@dataclass(frozen=True)
class ModelRules:
    """What a library's modules mean to a conversion.

    Attributes:
        fixed: Called with each module of the model; returns what in it must stay
            fixed, with the reason: ``""`` for all of it, the path of a module below it,
            where ``-1`` is the last of a Sequential, or a method, as ``"forward()"``,
            for the functions called inline there.
        converters: Converters by class; they apply to instances of exactly that class.
        finish: Called with the converted model.
    """

    fixed: Callable[[nn.Module], Mapping[str, str]]
    converters: Mapping[type, BlockConverter] = field(default_factory=dict)
    finish: Callable[[nn.Module], None] = lambda model: None


def _fixed_in_torch(module: nn.Module) -> dict[str, str]:
    if isinstance(module, nn.modules.loss._Loss):
        return {"": "it belongs to a loss"}
    if isinstance(module, ParametrizationList):
        return {"": "it computes a parameter, not a feature"}
    return {}


_RULES = [ModelRules(_fixed_in_torch)]


def add_rules(rules: ModelRules) -> None:
    """Let all further conversions follow these rules too."""
    if rules not in _RULES:
        _RULES.append(rules)


def converter_of(module: nn.Module) -> BlockConverter | None:
    """Return the converter of a module's class, if there is one."""
    return ChainMap(*(rules.converters for rules in _RULES)).get(type(module))


def finish(model: nn.Module) -> None:
    """Do to a converted model what the rules want done last."""
    for rules in _RULES:
        rules.finish(model)


def fixed_in(model: nn.Module) -> dict[tuple[int, str], str]:
    """Return what must stay fixed in a model, with the reasons.

    Keys are the id of a module and one of its attributes, one of its methods as
    ``"forward()"``, or ``""`` for all of it.
    """
    reasons: dict[tuple[int, str], str] = {}
    for module in model.modules():
        for rules in _RULES:
            for path, reason in rules.fixed(module).items():
                parent, _, name = path.rpartition(".")
                try:
                    owner = module.get_submodule(parent)
                except AttributeError:
                    continue
                name = str(len(owner) - 1) if name == "-1" else name
                reasons[id(owner), name] = reason
                child = owner._modules.get(name)
                if child is not None:
                    reasons[id(child), ""] = reason
    return reasons
