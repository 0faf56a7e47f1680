"""A forward pass that shows whether a conversion's report is true.

The report is read from source code, so it can miss what no source shows: a call through
a name that is computed, or a branch that the usual inputs never take.
"""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .kinds import FUNCTION_NAMES
from .report import NEVER_CALLED, ConversionReport

_FIXED = {*FUNCTION_NAMES, "hardtanh_", "prelu"}


def check_inputs(model: nn.Module, example_inputs: Any) -> None:
    """Raise a ValueError if the model does not run with these inputs."""
    try:
        with restored(model):
            _call(model, example_inputs)
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"example_inputs is a {type(example_inputs).__name__} with which "
            f"{type(model).__name__} does not run ({what}); give a tuple of its "
            f"arguments, a dict of its keyword arguments, or its only argument"
        ) from error


def compare(model: nn.Module, report: ConversionReport, example_inputs: Any) -> None:
    """Run a converted model once and note in its report where the two disagree."""
    ran: set[str] = set()
    paths = [site.path for site in report.sites]
    paths += [left.path for left in report.left if left.reason == NEVER_CALLED]
    with restored(model), UnlistedActivations(model, report) as unlisted:
        for path in paths:
            module = _module(model, path)
            if module is not None:
                module.register_forward_hook(lambda *_, path=path: ran.add(path))
        _call(model, example_inputs)
    report.disagreements = [
        f"{site.path} became learnable but did not run, so that a step like this one "
        f"gives its parameters no gradient"
        for site in report.sites
        if site.path not in ran
    ]
    for i, left in enumerate(report.left):
        if left.path in ran:
            reason = "it runs, though no call of it was found"
            report.left[i] = replace(left, reason=reason)
            report.disagreements.append(f"{left.path} stays fixed: {reason}")
    report.disagreements += sorted(unlisted.calls)


def _call(model: nn.Module, example_inputs: Any) -> None:
    with torch.no_grad():
        if isinstance(example_inputs, Mapping):
            model(**example_inputs)
        elif isinstance(example_inputs, tuple):
            model(*example_inputs)
        else:
            model(example_inputs)


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:  # a function
        return None


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """After the block, undo what it did to the model and to the random states.

    Attributes, hooks, modes and buffers become what they were, as do lists, dicts and
    sets that a module holds; not what is inside these.
    """
    saved = [(module, dict(vars(module))) for module in model.modules()]
    held = [
        (value, copy.copy(value))
        for _, attributes in saved
        for value in attributes.values()
        if type(value) in (list, dict, OrderedDict, set)
    ]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    states = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    used_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if used_cuda else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        for value, copied in held:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(copied)
        for module, attributes in saved:
            vars(module).clear()
            vars(module).update(attributes)
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)


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
