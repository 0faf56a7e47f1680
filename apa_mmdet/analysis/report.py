"""What an analysis found: as a record, a table, JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..conversion.report import aligned
from ..evaluation.core.workers import progress_bar
from .classifier import BACKGROUND, ROLES, ClassifierStatistics
from .collect import Statistics
from .compare import DISTRIBUTIONS, best_of, describe_histogram, describe_values

Parameters = dict[str, tuple[np.ndarray, np.ndarray]]
"""Effective lambda and kappa of activations and, by their head, classifiers."""
_GROUP_ORDER = ("r", "c", "f", "all", BACKGROUND)


def make_report(
    statistics: Statistics,
    classes: tuple[str, ...],
    images: np.ndarray,
    start: Parameters,
    now: Parameters,
) -> dict[str, Any]:
    """Fit the distributions to everything that was collected.

    Args:
        statistics: What was collected.
        classes: (C,) names.
        images: (C,) training images that show each class.
        start: lambda and kappa of activations and classifiers, by path, at first.
        now: The same while the statistics were collected.

    Returns:
        ``sites`` and ``classifiers``: lists of records as of
        :func:`.describe_histogram`, with ``site``, ``type`` or ``role`` and ``group``,
        and ``lam``, ``kappa``, ``start_lam``, ``start_kappa`` (means, or None);
        ``classes``: the same for each class with enough logits; ``skipped`` and
        ``num_images``.
    """
    sites, classifiers, by_class = [], [], []
    num_series = len(statistics.sites) + sum(
        len(each.histograms) for each in statistics.classifiers.values()
    )
    with progress_bar("fitting", "histograms", total=num_series) as bar:
        for name, site in statistics.sites.items():
            bar.update()
            record = dict(site=name, type=site.type)
            record.update(_in_use(start, now, site.module))
            sites.append(dict(record, **describe_histogram(site.histogram)))
        for head, classifier in statistics.classifiers.items():
            for role, group in ordered(classifier):
                bar.update()
                chosen = classifier.groups == group
                record = dict(site=head, role=role, group=group)
                record.update(_in_use(start, now, head, chosen))
                histogram = classifier.histograms[role, group]
                classifiers.append(dict(record, **describe_histogram(histogram)))
    for head, classifier in statistics.classifiers.items():
        if len(classifier.groups) == len(classes):
            by_class += _describe_classes(head, classifier, classes, images, start, now)
    return dict(
        num_images=statistics.num_images,
        sites=sites,
        classifiers=classifiers,
        classes=by_class,
        skipped=statistics.skipped,
    )


def ordered(classifier: ClassifierStatistics) -> list[tuple[str, str]]:
    """Return the roles and groups of a classifier in the order of reports."""
    return [
        (role, group)
        for role in ROLES
        for group in _GROUP_ORDER
        if (role, group) in classifier.histograms
    ]


def _describe_classes(
    head: str,
    classifier: ClassifierStatistics,
    classes: tuple[str, ...],
    images: np.ndarray,
    start: Parameters,
    now: Parameters,
) -> list[dict[str, Any]]:
    """Return the records of classes with enough values to fit."""
    records = []
    total = len(ROLES) * len(classes)
    with progress_bar("fitting", "classes", total=total) as bar:
        for role in ROLES:
            for label, name in enumerate(classes):
                bar.update()
                described = describe_values(classifier.class_values(role, label))
                if "fits" not in described:
                    continue
                group = str(classifier.groups[label])
                record = dict(site=head, role=role, group=group, label=name)
                record["training_images"] = int(images[label])
                index = np.arange(len(classes)) == label
                record.update(_in_use(start, now, head, index))
                records.append(dict(record, **described))
    return records


def _in_use(
    start: Parameters, now: Parameters, path: str, chosen: np.ndarray | None = None
) -> dict[str, float | None]:
    """Return the mean lambda and kappa, of the chosen classes, now and at first."""
    figures: dict[str, float | None] = {}
    for prefix, parameters in (("", now), ("start_", start)):
        for name, values in zip(("lam", "kappa"), parameters.get(path, (None, None))):
            if values is not None and chosen is not None and len(values) > 1:
                values = values[chosen] if chosen.any() else None
            figures[prefix + name] = None if values is None else float(values.mean())
    return figures


def records(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all records of a report."""
    for part in ("sites", "classifiers", "classes"):
        yield from report[part]


def table(report: dict[str, Any]) -> str:
    """Return the fits of sites and classifiers as text, one line each.

    Below it are the reasons why some have none.
    """
    head = ["site", "values", "mean", "std", "skew", "best"]
    head += [f"KS {name}" for name in DISTRIBUTIONS]
    reasons = []
    rows = [[*head, "fitted lam", "fitted kappa", "lam", "kappa"]]
    for record in (*report["sites"], *report["classifiers"]):
        parts = (record["site"], record.get("role"), record.get("group"))
        row = [" ".join(filter(None, parts)), f"{record['count']:,}"]
        row += [_short(record.get(name)) for name in ("mean", "std", "skewness")]
        fits = record.get("fits")
        if fits is None:
            rows.append([*row, *["-"] * (len(rows[0]) - len(row))])
            reasons.append(f"{row[0]}: {record['too_few']}")
            continue
        row.append(best_of(record))
        row += [f"{fits[name]['ks']:.3f}" for name in DISTRIBUTIONS]
        row += [_interval(fits["apa"], name) for name in ("lam", "kappa")]
        rows.append([*row, *(_short(record[name]) for name in ("lam", "kappa"))])
    reasons += [
        f"{head} is left out: {reason}" for head, reason in report["skipped"].items()
    ]
    return "\n".join([*aligned(rows), *reasons])


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _interval(fit: dict[str, float], name: str) -> str:
    text = f"{fit[name]:.3g}"
    if f"{name}_low" in fit:
        text += f" ({fit[f'{name}_low']:.3g} to {fit[f'{name}_high']:.3g})"
    return text


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write a report at full precision."""
    path.write_text(json.dumps(report, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def write_csv(report: dict[str, Any], path: Path) -> None:
    """Write all records, one line each, at full precision."""
    flat = [_flat(record) for record in records(report)]
    columns = dict.fromkeys(name for record in flat for name in record)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(flat)


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without nesting: ``apa_lam``, ``quantile_0.5``."""
    flat = {}
    for name, value in record.items():
        if name == "quantiles":
            flat.update({f"quantile_{share}": each for share, each in value.items()})
        elif name == "fits":
            for fitted, figures in value.items():
                flat.update({f"{fitted}_{key}": each for key, each in figures.items()})
            flat["best"] = best_of(record)
        else:
            flat[name] = value
    return flat
