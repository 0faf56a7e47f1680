"""The annotations of LVIS as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from .masks import PackedMasks
from .params import AREA_NAMES, outside_area_ranges
from .values import as_id


@dataclass
class GroundTruth:
    """Annotations, and what LVIS knows about the classes it did not annotate.

    N images, K classes, G annotations. Images and classes are referred to by their
    index in the sorted ids, an (image, class) pair by ``image_index * K +
    class_index``, int64.

    A pair is *judged* if the class is annotated in the image or known to be absent from
    it. Detections in all other pairs are dropped, because nobody looked for that class
    in that image.

    Attributes:
        image_ids: int64 (N,), sorted.
        heights: int32 (N,), in pixels; 0 if the file does not say.
        widths: int32 (N,).
        class_ids: int64 (K,), sorted.
        class_names: K names.
        frequency: int8 (K,): 0 rare, 1 common, 2 frequent.
        image_counts: int64 (K,), training images that show the class; -1 if unknown.
        label_to_class: int32 (K,): class index of each mmdet label. Labels follow the
            order of the annotation file, or the names given to
            :func:`~.classes.select_classes`.
        judged_pairs: int64, sorted.
        not_exhaustive_pairs: int64, sorted: pairs in which only some instances are
            annotated.
        image_index: int32 (G,). Annotations are sorted by image, then class, then as
            in the file.
        class_index: int32 (G,).
        boxes: float64 (G, 4): x, y, width, height in pixels.
        areas: float64 (G,): mask areas in square pixels.
        ignore: bool (G,).
        masks: G masks, None if they were not loaded.
    """

    image_ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    class_ids: np.ndarray
    class_names: list[str]
    frequency: np.ndarray
    image_counts: np.ndarray
    label_to_class: np.ndarray
    judged_pairs: np.ndarray
    not_exhaustive_pairs: np.ndarray
    image_index: np.ndarray
    class_index: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    ignore: np.ndarray
    masks: PackedMasks | None = None

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_ids)

    @property
    def names_of_labels(self) -> list[str]:
        """The name of the class that each label stands for."""
        return [self.class_names[index] for index in self.label_to_class]

    @property
    def num_pixels(self) -> np.ndarray:
        """Height x width of each image, int64 (N,)."""
        return self.heights.astype(np.int64) * self.widths

    def pairs(self, image_index: np.ndarray, class_index: np.ndarray) -> np.ndarray:
        """Return the pair of each image and class, int64."""
        return image_index.astype(np.int64) * self.num_classes + class_index

    def is_judged(self, pairs: np.ndarray) -> np.ndarray:
        """Return which pairs are judged, bool."""
        return lookup(self.judged_pairs, pairs)[1]

    def is_not_exhaustive(self, pairs: np.ndarray) -> np.ndarray:
        """Return in which pairs instances may lack an annotation, bool."""
        return lookup(self.not_exhaustive_pairs, pairs)[1]

    def ignored(self) -> np.ndarray:
        """Return which annotations do not count in each area range, bool (G, 4)."""
        return self.ignore[:, None] | outside_area_ranges(self.areas)

    def num_annotations(self) -> np.ndarray:
        """Return how many annotations of each class count, int64 (K, 4)."""
        counts = np.zeros((self.num_classes, len(AREA_NAMES)), np.int64)
        np.add.at(counts, self.class_index, ~self.ignored())
        return counts

    def take(self, rows: np.ndarray) -> GroundTruth:
        """Return only some of the annotations; their masks share this one's buffer."""
        return replace(
            self,
            image_index=self.image_index[rows],
            class_index=self.class_index[rows],
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            ignore=self.ignore[rows],
            masks=self.masks.take(rows) if self.masks is not None else None,
        )

    def subset(self, image_ids: Iterable[int]) -> GroundTruth:
        """Return the annotations of some images.

        Raises:
            ValueError: If an id is not a whole number or not in the annotation file.
        """
        ids = [as_id(value, "an entry of img_ids") for value in image_ids]
        ids = np.unique(np.array(ids, np.int64))
        index, is_known = lookup(self.image_ids, ids)
        if not is_known.all():
            unknown = ids[~is_known]
            raise ValueError(
                f"img_ids: {len(unknown)} of {len(ids)} ids are not in the annotation "
                f"file, the first: {unknown[:3].tolist()}"
            )
        new_index = np.full(self.num_images, -1, np.int64)
        new_index[index] = np.arange(len(index))
        chosen = self.take(np.flatnonzero(new_index[self.image_index] >= 0))

        def renumber(pairs: np.ndarray) -> np.ndarray:
            image_index, class_index = np.divmod(pairs, self.num_classes)
            image_index = new_index[image_index]
            return self.pairs(image_index, class_index)[image_index >= 0]

        return replace(
            chosen,
            image_ids=ids,
            heights=self.heights[index],
            widths=self.widths[index],
            judged_pairs=renumber(self.judged_pairs),
            not_exhaustive_pairs=renumber(self.not_exhaustive_pairs),
            image_index=new_index[chosen.image_index].astype(np.int32),
        )


def lookup(sorted_ids: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each id among sorted ids, and whether it is among them."""
    if not len(sorted_ids):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    index = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    return index, sorted_ids[index] == ids
