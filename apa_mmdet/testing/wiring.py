"""Whether every call in a converted model reaches the activation that it should."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.overrides import TorchFunctionMode

from ..conversion import ConversionReport, Site
from ..conversion.kinds import FUNCTION_NAMES, KINDS

_FIXED = {*FUNCTION_NAMES, "hardtanh_", "prelu"}


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
    kind, _, inline = site.was.partition(", ")
    if not inline:
        for path in (site.path, site.path.rpartition(".")[0]):
            try:
                original = copy.copy(base.get_submodule(path))
            except AttributeError:  # each call has a site of its own
                continue
            if not any(original.children()):
                original.inplace = False
                return original.forward
    names = (name for name in KINDS[kind].arguments if hasattr(activation, name))
    arguments = {name: getattr(activation, name) for name in names}
    return partial(KINDS[kind].functions[0], **arguments)


class UnlistedActivations(TorchFunctionMode):
    """Records fixed activations that run, yet are neither converted nor listed as left.

    Attributes:
        calls: A sentence for each such call.
    """

    def __init__(self, model: nn.Module, report: ConversionReport) -> None:
        super().__init__()
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._left = {left.path for left in report.left}
        self.calls: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call a function of torch, recording the caller of a fixed activation."""
        if getattr(func, "__name__", "") in _FIXED:
            self._record(func.__name__)
        return func(*args, **(kwargs or {}))

    def _record(self, name: str) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            path = self._paths.get(id(frame.f_locals.get("self")))
            if path is not None:
                method = f"{path}.{frame.f_code.co_name}()".lstrip(".")
                if not {path, method} & self._left:
                    self.calls.add(f"{name} in {method} is neither converted nor left")
                return
            frame = frame.f_back
