"""Logits of a classifier, by what they should say and by class group."""

from __future__ import annotations

import numpy as np

from .fit import MIN_VALUES
from .sampling import ImageSampler
from .statistics import Histogram, Reservoir

ROLES = ("target", "other", "background")
"""Of a logit: of the target class of a foreground proposal; of another class on a
foreground proposal; of a class on a background proposal."""
BACKGROUND = "b"
"""The group of a background logit; its target is a background proposal."""
# Limits for heads with thousands of classes or of proposals.
_MAX_LOGITS = 2**20  # of an image's background proposals
_MAX_KEPT = 2**21  # of all classes together


class ClassifierStatistics:
    """Histograms of logits by role and class group, and a sample of each class.

    Args:
        groups: (C,) names of the classes' groups, such as r, c and f.
        sampler: How many values to use and to keep.
    """

    def __init__(self, groups: np.ndarray, sampler: ImageSampler) -> None:
        self.groups = np.asarray(groups)
        self.histograms: dict[tuple[str, str], Histogram] = {}
        num_series = len(ROLES) * len(self.groups)
        size = min(sampler.values_per_class, max(MIN_VALUES, _MAX_KEPT // num_series))
        self.by_class = Reservoir(num_series, size)

    def add(
        self, name: str, logits: np.ndarray, labels: np.ndarray, sampler: ImageSampler
    ) -> None:
        """Add an image's logits.

        Args:
            name: Of the classifier, which the random choice depends on.
            logits: (N, C), or (N, C + 1) with that of background last.
            labels: (N,) classes, C for background.
            sampler: That of the image.
        """
        num_classes = len(self.groups)
        is_background = labels == num_classes
        # All proposals with an object; of the others, as many as are affordable.
        chosen, steps = [np.flatnonzero(~is_background)], [1]
        limit = max(_MAX_LOGITS // num_classes, 1)
        rows, step = sampler.choose(is_background.sum(), f"{name} background", limit)
        chosen.append(np.flatnonzero(is_background)[rows])
        steps.append(step)
        for rows, step in zip(chosen, steps):
            if len(rows):
                self._add_rows(name, logits[rows], labels[rows], step, sampler)

    def _add_rows(
        self,
        name: str,
        logits: np.ndarray,
        labels: np.ndarray,
        step: int,
        sampler: ImageSampler,
    ) -> None:
        num_classes = len(self.groups)
        on_background = labels[0] == num_classes
        is_target = np.zeros(logits.shape, bool)
        if not on_background:
            is_target[np.arange(len(labels)), labels] = True
        elif logits.shape[1] > num_classes:
            is_target[:, num_classes] = True
        rest = ROLES.index("background" if on_background else "other")
        roles = np.where(is_target, ROLES.index("target"), rest)
        groups = np.append(self.groups, BACKGROUND)[: logits.shape[1]]
        for role in (ROLES.index("target"), rest):
            for group in np.unique(groups):
                columns = groups == group
                values = logits[:, columns][roles[:, columns] == role]
                if len(values):
                    key = ROLES[role], str(group)
                    if key not in self.histograms:
                        self.histograms[key] = sampler.histogram()
                    label = f"{name} {' '.join(key)} {on_background}"
                    sampler.add_to(self.histograms[key], values, label, step)
        # A background logit belongs to no class.
        roles = roles[:, :num_classes]
        series = roles * num_classes + np.arange(num_classes)
        random = sampler.random(f"{name} classes {on_background}")
        self.by_class.add(
            series.ravel(), random.random(series.size), logits[:, :num_classes].ravel()
        )

    def class_values(self, role: str, label: int) -> np.ndarray:
        """Return the sample of a class's logits in a role."""
        return self.by_class.values_of(ROLES.index(role) * len(self.groups) + label)

    def merge(self, other: ClassifierStatistics) -> None:
        """Add another process's logits."""
        for key, histogram in other.histograms.items():
            if key in self.histograms:
                self.histograms[key].merge(histogram)
            else:
                self.histograms[key] = histogram
        self.by_class.merge(other.by_class)
