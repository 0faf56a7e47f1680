"""What goes into the activations, gates and classifiers of a model while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..conversion import kinds
from ..conversion.planning import join
from ..layers import AGLU, APA
from .classifier import ClassifierStatistics
from .sampling import ImageSampler
from .sites import is_activation_module, planned_names
from .statistics import Histogram

CLASSIFIER = "loss_cls"
"""The attribute of MMDetection's heads whose call has logits and labels."""


@dataclass
class SiteStatistics:
    """What went into one activation: its module's path, its type, and a histogram."""

    module: str
    type: str
    histogram: Histogram


@dataclass
class Statistics:
    """All that was collected, of one or several processes; it can be pickled.

    Attributes:
        sampler: How many values are used, and which.
        groups: (C,) group names of the data set's classes.
        sites: By name, in the order of the first calls.
        classifiers: By the path of the head.
        skipped: Why a classifier is not in there, by its head's path.
        num_images: Number of images.
    """

    sampler: ImageSampler
    groups: np.ndarray
    sites: dict[str, SiteStatistics] = field(default_factory=dict)
    classifiers: dict[str, ClassifierStatistics] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    num_images: int = 0

    def merge(self, other: Statistics) -> None:
        """Add what another process has collected from other images."""
        for key, site in other.sites.items():
            if key in self.sites:
                self.sites[key].histogram.merge(site.histogram)
            else:
                self.sites[key] = site
        for path, classifier in other.classifiers.items():
            if path in self.classifiers:
                self.classifiers[path].merge(classifier)
            else:
                self.classifiers[path] = classifier
        self.skipped.update(other.skipped)
        self.num_images += other.num_images


class Collector:
    """A context in which a model's activations and classifiers are watched.

    Activations are found as modules, whatever calls them, and as functions called
    inline, such as ``F.relu``. Of a fixed one that is called in several places, each is
    a site, named as in the converted model. A classifier is any ``loss_cls`` that is
    called with logits (N, C) or (N, C + 1) and labels (N,), so the model has to compute
    its losses.

    Args:
        model: Any module.
        statistics: Where to add what is seen.
        patterns: ``fnmatch`` patterns of the sites and heads to watch; what is below a
            path goes with it.
    """

    def __init__(
        self, model: nn.Module, statistics: Statistics, patterns: Sequence[str] = ("*",)
    ) -> None:
        self.statistics = statistics
        self.patterns = patterns
        self.found: set[str] = set()  # all paths, whether a pattern matches or not
        self.matched: set[str] = set()  # patterns
        self._model = model
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._frames: list[_Frame] = []
        self._handles: list[Any] = []
        self._inline = _InlineCalls(self)
        self._names = planned_names(model)

    def __enter__(self) -> Collector:
        for module in self._model.modules():
            self._handles += [
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]
        self._inline.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inline.__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def start_image(self, number: int, block: int) -> None:
        """Say which image the model is given next; see :class:`.ImageSampler`."""
        self.statistics.sampler.start_image(number, block)
        self.statistics.num_images += 1
        self._frames = [_Frame("", False)]

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        path = self._paths[id(module)]
        is_activation = is_activation_module(module)
        if is_activation and not self._frames[-1].is_activation:
            x = (*args, *kwargs.values())[0]
            # It has one lambda and kappa, however often it is called.
            name = path if isinstance(module, (APA, AGLU)) else self._name_call(path)
            self._add_site(name, path, type(module).__name__, x)
        head, _, name = path.rpartition(".")
        if name == CLASSIFIER:
            self._add_classifier(head, *args, **kwargs)
        self._frames.append(_Frame(path, is_activation))

    def _leave(self, *_: Any) -> None:
        self._frames.pop()

    def add_inline(self, function: Any, x: Any) -> None:
        """Add the input of a function, if it is an activation that a module calls."""
        name = getattr(function, "__name__", None)
        is_method = function is getattr(Tensor, str(name), None)
        kind = kinds.KIND_OF_METHOD.get(name) if is_method else kinds.look_up(function)
        frame = self._frames[-1] if self._frames else None
        if kind and frame and not frame.is_activation and isinstance(x, Tensor):
            path = join(frame.path, kind.lower())
            self._add_site(self._name_call(path), path, f"{kind}, inline", x)

    def _name_call(self, path: str) -> str:
        """Return the name of the site that the running module calls now."""
        calls = self._frames[-1].calls
        call = calls[path] = calls.get(path, -1) + 1
        planned = self._names.get(path, [])
        if len(planned) == 1:  # one for all calls, such as those for each level
            return planned[0]
        if call < len(planned):
            return planned[call]
        return f"{path}.{call}" if call else path

    def _add_site(self, name: str, path: str, kind: str, x: Tensor) -> None:
        if not self._wanted(name, path):
            return
        statistics, sampler = self.statistics, self.statistics.sampler
        if name not in statistics.sites:
            new = SiteStatistics(path, kind, sampler.histogram())
            statistics.sites[name] = new
        flat = x.detach().flatten()
        chosen, step = sampler.choose(len(flat), name)
        values = flat[torch.from_numpy(chosen).to(flat.device)].float().cpu().numpy()
        statistics.sites[name].histogram.add(values, sampler.weights * step)

    def _add_classifier(
        self,
        path: str,
        logits: Any = None,
        labels: Any = None,
        *rest: Any,
        **kwargs: Any,
    ) -> None:
        if not self._wanted(path):
            return
        statistics = self.statistics
        logits = kwargs.get("cls_score", kwargs.get("pred", logits))
        labels = kwargs.get("label", kwargs.get("labels", kwargs.get("target", labels)))
        if isinstance(labels, (tuple, list)) and labels:  # with a quality
            labels = labels[0]
        head = self._model.get_submodule(path)
        problem = _misfit(logits, labels)
        if problem:
            statistics.skipped[path] = problem
            return
        weight = kwargs.get("weight", rest[0] if rest else None)
        keep = labels >= 0
        if isinstance(weight, Tensor) and weight.shape == labels.shape:
            keep = keep & (weight > 0)
        num_classes = getattr(head, "num_classes", logits.shape[1])
        if path not in statistics.classifiers:
            groups = statistics.groups
            if len(groups) != num_classes:
                groups = np.full(num_classes, "all")
            new = ClassifierStatistics(groups, statistics.sampler)
            statistics.classifiers[path] = new
        # Seesaw's logits of "an object or not" are none of a class.
        logits = logits[:, : num_classes + (logits.shape[1] == num_classes + 1)]
        logits, labels = logits.detach()[keep].float(), labels[keep]
        statistics.classifiers[path].add(
            path, logits.cpu().numpy(), labels.cpu().numpy(), statistics.sampler
        )

    def _wanted(self, *names: str) -> bool:
        """Return whether a pattern matches one of the names of a site or head."""
        self.found.add(names[0])
        matching = {
            pattern
            for pattern in self.patterns
            for name in names
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
        }
        self.matched |= matching
        return bool(matching)


@dataclass
class _Frame:
    """A module that is running, and how often it has called which activation."""

    path: str
    is_activation: bool
    calls: dict[str, int] = field(default_factory=dict)


class _InlineCalls(TorchFunctionMode):
    """Lets a collector see every call of a torch function."""

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        self._collector = collector

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = args or tuple(kwargs.values())
        if given:
            self._collector.add_inline(function, given[0])
        return function(*args, **kwargs)


def _misfit(logits: Any, labels: Any) -> str:
    """Return why a loss's arguments are not logits and labels, or ""."""
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        return "its loss is not called with logits and labels"
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        return (
            f"its loss is called with logits of shape {tuple(logits.shape)} and labels "
            f"of shape {tuple(labels.shape)}, expected (N, C) and (N,)"
        )
    if labels.is_floating_point():
        return "its labels are not integers"
    return ""
