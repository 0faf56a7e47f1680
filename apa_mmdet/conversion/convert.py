"""Any module tree with its activations replaced by learnable ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from . import kinds
from .choice import Choice
from .making import Maker, fixed, start_of
from .report import ConversionReport, Left, Site
from .rewriting import ActivationSites, rewrite
from .sites import REPEATED, Plan, Target, plan
from .source import calls_on_others


def convert_activations(
    model: nn.Module,
    activation: str | Mapping | type = "AGLU",
    init: str | Mapping = "auto",
    parts: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    gates: bool = False,
) -> ConversionReport:
    """Give a model a learnable activation in every place where it has a fixed one.

    Every place in the code that calls an activation gets a scalar lambda and kappa of
    its own, also where the model calls one module from several places or a function
    such as ``F.relu`` inline. What shares its weights shares its activation: a head
    that runs once for each feature level, a module that appears twice. Activations
    that no code calls are left, so that no parameter goes without a gradient.

    How it is done: the places are read from the source of the modules' methods. Where
    an attribute has one place, the activation is set there. Where it has several, or a
    function is called inline, the attribute becomes an :class:`ActivationSites` with a
    key for each place, and the module's class a subclass of it in which the calls name
    their key; nothing is decided while the model runs. It costs a reading of the
    source, about a second for a detector, and two numbers for each site. The keys of
    all weights stay as they were.

    Source: mmdet calls; AGLU from Alexandridis et al., ECCV 2024, arXiv 2407.08567.

    Args:
        model: Any module; it is changed in place. Convert it before an optimizer, DDP
            or an averaged copy lists its parameters. A part that has been converted
            on its own stays as it is.
        activation: What to put in: ``'AGLU'``, ``'APA'``, a subclass of these, or a
            dict with that as ``type`` and further arguments.
        init: Starting values. ``'auto'``: as close as possible to what is replaced;
            see ``kinds.KINDS`` for how close. Otherwise as in ``AGLU(init=...)`` for
            all sites, or a dict from activation types to that for some. The slope of
            a LeakyReLU and the bound of a ReLU6 stay; arguments in ``activation``
            override them.
        parts: Which parts of the model: names of modules, dotted or not, anywhere in
            it, or ``'head'`` for every module whose name ends so. By default all.
            A teacher and its student must be converted alike: their parameters are
            averaged in order.
        types: Which activations, of ``kinds.KINDS``. By default all but Hardswish.
        exclude: Patterns as in ``fnmatch`` of paths to leave, such as
            ``'backbone.layer1'`` or ``'*.attention*'``; what is below a path goes
            with it.
        gates: If True, sigmoid modules become bare APA(1, 1).

    Returns:
        The report, which is also kept as ``model.conversion_report``.

    Raises:
        TypeError: If ``model`` is no module or ``activation`` is no APA or AGLU.
        ValueError: If the model has been converted already, if a part, type or pattern
            matches nothing, or if ``init`` is no starting value.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected a torch.nn.Module")
    if getattr(model, "conversion_report", None) is not None:
        raise ValueError(
            "this model has been converted already; build it anew to convert it with "
            "other options"
        )
    maker = Maker(activation, init)
    owners = list(_owners(model))
    paths = [owner.path_of(target) for owner in owners for target in owner.plan.targets]
    choice = Choice(model, paths, parts, types, exclude, gates)

    report = ConversionReport()
    for owner in owners:
        _convert(owner, choice, maker, report)
    for module in model.modules():
        # Stages are frozen while a model is built and again in train(): DDP and the
        # optimizer, which come in between, must not see what will be frozen.
        freeze = getattr(module, "_freeze_stages", None)
        if callable(freeze) and not inspect.signature(freeze).parameters:
            freeze()
    for i, site in enumerate(report.sites):
        trains = model.get_parameter(f"{site.path}.lambda_param").requires_grad
        report.sites[i] = replace(site, trainable=trains)
    model.conversion_report = report
    return report


@dataclass
class _Owner:
    """A module that calls activations.

    Attributes:
        module: The module.
        paths: Its paths in the model, the first of which counts.
        ancestors: The modules around it, the nearest first.
        plan: What it calls.
        unconvertible: Its children that are activations of another family.
        repeated: Whether it runs more than once in one pass of the model.
    """

    module: nn.Module
    paths: list[str]
    ancestors: tuple[nn.Module, ...]
    plan: Plan
    unconvertible: dict[str, str]
    repeated: bool

    def path_of(self, target: Target) -> str:
        return _join(self.paths[0], target.attribute, target.key)


def _join(*names: str | None) -> str:
    return ".".join(name for name in names if name)


def _owners(model: nn.Module) -> Iterator[_Owner]:
    """Go through the model once, each module at its first path."""
    found: dict[int, _Owner] = {}
    classes = {type(module) for module in model.modules()}

    def is_called_elsewhere(name: str) -> bool:
        return any(calls_on_others(cls, name) for cls in classes)

    def visit(module: nn.Module, path: str, ancestors: tuple, again: bool) -> None:
        if id(module) in found:
            found[id(module)].paths.append(path)
            return
        unconvertible = {}
        inner = []
        for name, child in module._modules.items():
            reason = None if child is None else kinds.reason_to_leave(child)
            if reason is not None:
                unconvertible[name] = reason
            elif child is not None and kinds.kind_of(child) is None:
                inner.append((name, child))
        own = plan(module, is_called_elsewhere)
        owner = _Owner(module, [path], ancestors, own, unconvertible, again)
        found[id(module)] = owner
        for name, child in inner:
            repeated = again or name in own.repeated_children
            visit(child, _join(path, name), (module, *ancestors), repeated)

    visit(model, "", (), False)
    return iter(found.values())


def _convert(
    owner: _Owner, choice: Choice, maker: Maker, report: ConversionReport
) -> None:
    module, path = owner.module, owner.paths[0]
    around = (module, *owner.ancestors)
    kept = next(filter(None, map(choice.keeps_all_of, around)), None)
    for name, reason in owner.unconvertible.items():
        was = type(module._modules[name]).__name__
        report.left.append(Left(_join(path, name), was, kept or reason))
    for name, was, reason in owner.plan.left:
        report.left.append(Left(_join(path, name), was, kept or reason))

    by_attribute: dict[str, list[Target]] = {}
    chosen = set()
    for target in owner.plan.targets:
        by_attribute.setdefault(target.attribute, []).append(target)
        where = owner.path_of(target)
        reason = kept or choice.reason_to_leave(module, target, where)
        if reason:
            if target.method is not None:
                where = f"{_join(path, target.method)}()"
            report.left.append(Left(where, target.kind, reason))
        else:
            chosen.add((target.attribute, target.key))

    edits = []
    for attribute, targets in by_attribute.items():
        taken = [t for t in targets if (attribute, t.key) in chosen]
        if not taken:
            continue
        reference, frozen = _neighbours(owner, attribute)
        made = {}
        for target in taken:
            activation = maker.build(target)
            if reference is not None:
                activation.to(reference.device)
            if frozen:
                activation.requires_grad_(False)
            made[target.key] = activation
            report.sites.append(_site(owner, target, activation))
        _put_in(module, attribute, targets, made)
        edits += owner.plan.edits.get(attribute, [])
    if edits:
        rewrite(module, edits, owner.plan.jumps)
    if chosen and getattr(module, "activation_relu_or_gelu", 0):
        # torch's TransformerEncoderLayer would compute its own ReLU or GELU in one
        # fused call when it does not train.
        module.activation_relu_or_gelu = 0


def _put_in(
    module: nn.Module, attribute: str, targets: list[Target], made: dict
) -> None:
    if None in made:
        new = made[None]
    else:
        old = module._modules.get(attribute) or vars(module).get(attribute)
        new = ActivationSites(old if old is not None else fixed(targets[0]))
        for target in targets:
            new[target.key] = made.get(target.key) or fixed(target)
    vars(module).pop(attribute, None)  # a function such as F.relu
    module._modules[attribute] = new


def _site(owner: _Owner, target: Target, activation: nn.Module) -> Site:
    shared = [target.shared] if target.shared else []
    if owner.repeated and REPEATED not in target.shared:
        shared.append(REPEATED)
    if len(owner.paths) > 1:
        shared.append(f"also at {', '.join(owner.paths[1:])}")
    was = target.kind if target.method is None else f"{target.kind}, inline"
    return Site(
        owner.path_of(target),
        was,
        type(activation).__name__,
        start_of(activation),
        "; ".join(shared),
    )


def _neighbours(owner: _Owner, attribute: str) -> tuple[nn.Parameter | None, bool]:
    """Return a parameter from beside an activation, and whether all of them are frozen.

    Those of the layers registered before it in its module count; if there are none,
    those of the whole module, or of the nearest one around it that has any.
    """
    before: list[nn.Parameter] = []
    for name, child in owner.module._modules.items():
        if name == attribute:
            break
        if child is not None:
            before += _parameters(child)
    if attribute not in owner.module._modules:
        before = []
    for around in (owner.module, *owner.ancestors):
        before = before or _parameters(around)
    reference = before[0] if before else None
    return reference, bool(before) and not any(p.requires_grad for p in before)


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return a module's parameters without those of activations."""
    return [
        parameter
        for name, parameter in module.named_parameters()
        if not name.endswith(("lambda_param", "kappa_param"))
    ]
