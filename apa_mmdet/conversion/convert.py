"""Replacing a model's activations by learnable ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .dry_run import check_inputs, compare
from .grouping import REPEATED
from .missing_weights import keep_starts
from .options import FilterFn, Options
from .planning import ModulePlan, PlannedSite, join, plan_model
from .report import ConversionReport, Left, Site
from .rewriting import ActivationSites, rewrite
from .rules import finish, fixed_in


def convert_activations(
    model: nn.Module,
    activation: str | Mapping | type = "AGLU",
    init: str | Mapping = "auto",
    parts: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    gates: bool = False,
    filter_fn: FilterFn | str | None = None,
    example_inputs: Any = None,
) -> ConversionReport:
    """Replace a model's fixed activations by learnable ones, in place.

    Each place in the code that calls an activation gets its own scalar lambda and
    kappa, even where the model calls one module in several places or a function such as
    ``F.relu`` inline. Activations are known by their class or recognised by what they
    compute, whoever wrote them. Calls that share weights share their activation: in a
    head that runs on each feature level, or a module that appears twice. So do calls of
    which only one can run in a step, such as in two branches of a condition on the
    input; and activations that are never called are not converted, so that no parameter
    goes without a gradient. The keys of all weights stay as they were.

    The calls are found in the source of the modules' methods and routed by rewriting
    it; the package's docstring traces one ReLU through this process. A library can
    describe its classes, and convert some in its own way, by
    :func:`~apa_mmdet.conversion.rules.add_rules`, as ``apa_mmdet.models`` does for
    MMDetection.

    Conditions on a module's attributes (``if self.num_branches == 1``) and loops over
    its layers are evaluated once, at conversion time, so set attributes and add layers
    first. A call through a split attribute that was excluded by such a condition raises
    a RuntimeError if it runs after all; one of a function such as ``F.relu`` stays
    fixed. Decorators of a rewritten method are re-applied; variables of enclosing
    scopes are shared with the original. A pickled converted model needs the source it
    was converted from; otherwise loading it raises.

    Source: AGLU from Alexandridis et al., ECCV 2024, arXiv 2407.08567.

    Args:
        model: Any module. Convert it before its optimizer, DDP wrapper or averaged copy
            is created. A module in it that was converted before stays as it is.
        activation: The replacement: ``'AGLU'``, ``'APA'``, a subclass of these, or a
            dict with that as ``type`` and further arguments.
        init: Starting values. ``'auto'``: as close as possible to what is replaced, see
            ``kinds.KINDS``. Otherwise as in ``AGLU(init=...)`` for all sites, or a dict
            from activation types to that for some. The slope of a LeakyReLU and the
            bound of a ReLU6 stay; arguments in ``activation`` override them.
        parts: Parts of the model to convert: names of modules, dotted or not, anywhere
            in it, or ``'head'`` for every module whose name ends in ``'head'``. By
            default all. Convert a teacher and its student alike: their parameters are
            averaged in order.
        types: Activation types to convert, of ``kinds.KINDS``. By default all without a
            ``skip_reason`` there.
        exclude: ``fnmatch`` patterns of paths to leave, such as ``'backbone.layer1'``
            or ``'*.attention*'``; what is below a path goes with it.
        gates: If True, sigmoid modules become bare APA(1, 1).
        filter_fn: A callable ``(module, path) -> bool``, or its dotted name. It is
            called with each activation that the other options select and its path in
            the converted model; False leaves it. For a function called inline,
            ``module`` is the module that computes it.
        example_inputs: The model's argument, a tuple of its arguments, or a dict of its
            keyword arguments. With them, the model runs once before and once after the
            conversion, without gradients and in the mode it is in, and what ran is
            compared with the report: see ``ConversionReport.disagreements``. The
            conversion is the same, and the runs leave no trace in the model's state
            and in random states.

    Returns:
        The report, which is also stored as ``model.conversion_report``.

    Raises:
        TypeError: If ``model`` is not a module, ``activation`` is not an APA or AGLU,
            a list of names is one string, or ``filter_fn`` cannot be called.
        ValueError: If the model has been converted already, a part or pattern matches
            nothing, a type is unknown, ``filter_fn`` names nothing, ``init`` is not a
            starting value, or the model does not run with ``example_inputs``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected a torch.nn.Module")
    if getattr(model, "conversion_report", None) is not None:
        raise ValueError(
            "this model has been converted already; rebuild it to convert it with "
            "other options"
        )
    options = Options(activation, init, parts, types, exclude, gates, filter_fn)
    plans = plan_model(model)
    paths = [plan.path_of(site) for plan in plans for site in plan.sites]
    options.check_names(model, paths)
    if example_inputs is not None:
        check_inputs(model, example_inputs)

    report = ConversionReport()
    fixed = fixed_in(model)
    # Everything is decided before anything changes.
    chosen = [_choose(plan, options, fixed, report) for plan in plans]
    converted = [
        (plan, site, activation)
        for plan, sites in zip(plans, chosen)
        for site, activation in _convert(plan, sites, options)
    ]
    finish(model)
    keep_starts(model)
    for module in model.modules():
        # Stages are frozen while a model is built and again in train(). DDP and the
        # optimizer, which come in between, must not list what will be frozen.
        freeze = getattr(module, "_freeze_stages", None)
        if callable(freeze) and not inspect.signature(freeze).parameters:
            freeze()
    report.sites = [_report_site(*each) for each in converted]
    model.conversion_report = report
    if example_inputs is not None:
        compare(model, report, example_inputs)
    return report


def _choose(
    plan: ModulePlan,
    options: Options,
    fixed: Mapping[tuple[int, str], str],
    report: ConversionReport,
) -> list[PlannedSite]:
    """Return the sites of a module to convert, and report what is left."""
    module, path = plan.module, plan.paths[0]
    whole = [fixed.get((id(m), "")) for m in (module, *plan.ancestors)]
    stays = next(filter(None, whole), None)
    for name, was, reason in plan.left:
        report.left.append(Left(join(path, name), was, stays or reason))
    chosen = []
    for site in plan.sites:
        where = plan.path_of(site)
        name = site.attribute if site.method is None else f"{site.method}()"
        # An activation may be of a class that the rules know.
        own = getattr(module, site.attribute, None) if site.method is None else None
        keys = ((id(module), name), (id(own), ""), (id(own), "forward()"))
        reason = stays or next(filter(None, map(fixed.get, keys)), None)
        reason = reason or options.reason_to_leave(site, module, where)
        if not reason:
            chosen.append(site)
        else:
            where = where if site.method is None else join(path, name)
            report.left.append(Left(where, site.kind, reason))
    return chosen


def _convert(
    plan: ModulePlan, sites: list[PlannedSite], options: Options
) -> list[tuple[PlannedSite, nn.Module]]:
    """Replace the activations of one module at these sites, and route its calls."""
    if not sites:
        return []
    module, converted = plan.module, []
    activations: dict[str, dict[str | None, nn.Module]] = {}  # by attribute and key
    for site in plan.sites:
        if site in sites:
            activation = options.build(site)
            neighbours = _neighbours(plan, site.attribute)
            if neighbours:
                activation.to(neighbours[0].device)
                if not any(parameter.requires_grad for parameter in neighbours):
                    activation.requires_grad_(False)
            converted.append((site, activation))
        else:
            activation = site.fixed_activation()
        activations.setdefault(site.attribute, {})[site.key] = activation

    if plan.converter is not None:
        by_name = {k: v for each in activations.values() for k, v in each.items()}
        plan.converter.convert(module, by_name)
        return converted
    site_calls = []
    for attribute in dict.fromkeys(site.attribute for site in sites):
        by_key = activations[attribute]
        new = by_key.get(None)
        if new is None:
            new = ActivationSites(f"{type(module).__name__}.{attribute}")
            new.update(by_key)
        vars(module).pop(attribute, None)  # a function such as F.relu
        module._modules[attribute] = new
        site_calls += plan.site_calls.get(attribute, [])
    if site_calls:
        rewrite(module, site_calls, plan.base_calls)
    if getattr(module, "activation_relu_or_gelu", 0):
        # torch's TransformerEncoderLayer would compute its own ReLU or GELU in one
        # fused call when it does not train.
        module.activation_relu_or_gelu = 0
    return converted


def _report_site(plan: ModulePlan, site: PlannedSite, activation: nn.Module) -> Site:
    shared = list(site.shared)
    if plan.repeated and REPEATED not in shared:
        shared.append(REPEATED)
    if len(plan.paths) > 1:
        shared.append(f"also at {', '.join(plan.paths[1:])}")
    lam, kappa = (
        f"{low:g}" if low == high else f"{low:g} to {high:g}"
        for low, high in activation._ranges
    )
    return Site(
        path=plan.path_of(site),
        was=site.kind if site.method is None else f"{site.kind}, inline",
        becomes=type(activation).__name__,
        start=f"lambda {lam}, kappa {kappa}",
        shared="; ".join(shared),
        trainable=activation.lambda_param.requires_grad,
    )


def _neighbours(plan: ModulePlan, attribute: str) -> list[nn.Parameter]:
    """Return the parameters beside an activation, without those of activations.

    They are those of the layers registered before it in its module; without any, those
    of the whole module, or of the nearest module around it that has any.
    """
    children = plan.module._modules
    names = list(children) if attribute in children else [attribute]
    before = [children[name] for name in names[: names.index(attribute)]]
    for modules in (before, *([module] for module in (plan.module, *plan.ancestors))):
        parameters = [
            parameter
            for module in modules
            if module is not None
            for name, parameter in module.named_parameters()
            if not name.endswith(("lambda_param", "kappa_param"))
        ]
        if parameters:
            return parameters
    return []
