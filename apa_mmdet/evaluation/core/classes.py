"""Classes chosen by name, and what the labels of a model mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from .ground_truth import GroundTruth

# MMDetection's LVIS classes correct the spelling of one name in LVIS's files.
_LVIS_SPELLING = {"speaker_(stereo_equipment)": "speaker_(stero_equipment)"}


def select_classes(
    truth: GroundTruth, names: Iterable[str], source: object
) -> GroundTruth:
    """Return the annotations of the classes that labels 0, 1, ... stand for.

    The result has those classes only, in the order of their ids as always;
    ``label_to_class`` follows ``names``.

    Args:
        truth: All annotations.
        names: The name of each label.
        source: The annotation file, for messages.

    Raises:
        ValueError: If a name is not in the file, occurs more than once, or is
            repeated.
    """
    names = [in_lvis_spelling(name) for name in names]
    in_file = [in_lvis_spelling(name) for name in truth.names_of_labels]
    if names == in_file:
        return truth  # also if classes share a name
    classes_of: dict[str, list[int]] = {}
    for index, name in zip(truth.label_to_class.tolist(), in_file):
        classes_of.setdefault(name, []).append(index)
    unknown = [name for name in names if name not in classes_of]
    if unknown:
        raise ValueError(f"{source}: {unknown_classes(unknown, names, in_file)}")
    for name, count in Counter(names).items():
        ids = truth.class_ids[classes_of[name]].tolist()
        if len(ids) > 1:
            raise ValueError(f"{source}: {shared_name(name, ids)}")
        if count > 1:
            raise ValueError(
                f"metainfo['classes'] of the data set has {name!r} {count} times; "
                "name each class once"
            )

    chosen = np.array([classes_of[name][0] for name in names])
    kept = np.sort(chosen)
    new_index = np.full(truth.num_classes, -1, np.int32)
    new_index[kept] = np.arange(len(kept))

    def renumber(pairs: np.ndarray) -> np.ndarray:
        image_index, class_index = np.divmod(pairs, truth.num_classes)
        class_index = new_index[class_index]
        return (image_index * len(kept) + class_index)[class_index >= 0]

    selected = truth.take(np.flatnonzero(new_index[truth.class_index] >= 0))
    return replace(
        selected,
        class_ids=truth.class_ids[kept],
        class_names=[truth.class_names[i] for i in kept],
        frequency=truth.frequency[kept],
        image_counts=truth.image_counts[kept],
        label_to_class=new_index[chosen],
        judged_pairs=renumber(truth.judged_pairs),
        not_exhaustive_pairs=renumber(truth.not_exhaustive_pairs),
        class_index=new_index[selected.class_index],
    )


def in_lvis_spelling(name: str) -> str:
    """Return a class's name as LVIS's own files spell it."""
    return _LVIS_SPELLING.get(name, name)


def unknown_classes(
    unknown: Sequence[str], names: Sequence[str], in_file: Sequence[str]
) -> str:
    """Return what to say of classes that an annotation file does not have."""
    return (
        f"no category is named {_first(unknown)} ({len(unknown):,} of the data set's "
        f"{len(names):,} classes); the file has {len(in_file):,}, {_first(in_file)}. "
        "Set metainfo=dict(classes=...) of the data set to the file's names, or add "
        "the missing ones to the file"
    )


def shared_name(name: str, ids: Sequence[int]) -> str:
    """Return what to say of categories that share a name."""
    return (
        f"categories {' and '.join(map(str, ids))} share the name {name!r}, which does "
        "not say which of them is meant; rename one, or remove one that has no "
        "annotations"
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
