"""Whether every call in a converted model reaches the activation that it should."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

from ..conversion import ConversionReport, Site
from ..conversion.kinds import KINDS


@contextmanager
def original_activations(
    base: nn.Module, model: nn.Module, report: ConversionReport
) -> Iterator[None]:
    """Within the block, let every site compute what it replaced.

    The model then differs from the unconverted one only where a call goes to the wrong
    site or to none, or relied on its input being overwritten.
    """
    activations = [model.get_submodule(site.path) for site in report.sites]
    for site, activation in zip(report.sites, activations):
        activation.forward = _original(base, site, activation)
    try:
        yield
    finally:
        for activation in activations:
            del activation.forward


def _original(base: nn.Module, site: Site, activation: nn.Module) -> Callable:
    kind, owner = kind_of(site), site.path.rpartition(".")[0]
    if site.was == kind:  # not inline
        for path in (site.path, owner):
            try:
                original = copy.copy(base.get_submodule(path))
            except AttributeError:  # each call has a site of its own
                continue
            if not any(original.children()):
                original.inplace = False
                return original.forward
    names = (name for name in KINDS[kind].arguments if hasattr(activation, name))
    arguments = {name: getattr(activation, name) for name in names}
    form = getattr(_nearest(base, owner), "approximate", None)
    if kind == "GELU" and isinstance(form, str):  # the caller hands it on
        arguments["approximate"] = form
    return partial(KINDS[kind].functions[0], **arguments)


def _nearest(base: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, or the nearest around it that exists."""
    while True:
        try:
            return base.get_submodule(path)
        except AttributeError:
            path = path.rpartition(".")[0]


def kind_of(site: Site) -> str:
    """Return the activation that a site replaced, whether a module or inline."""
    return site.was.split(",")[0]
