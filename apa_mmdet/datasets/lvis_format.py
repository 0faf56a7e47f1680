"""Data sets of any classes, annotated in LVIS's or COCO's format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from ..evaluation.core.classes import in_lvis_spelling
from .data_files import COCO_URL


class _AnnotationFile(COCO):
    """An annotation file whose images have a ``file_name`` and classes go by name."""

    def __init__(self, path: str) -> None:
        self._path = path
        super().__init__(path)
        for image in self.imgs.values():
            if "file_name" not in image and "coco_url" in image:  # LVIS v1
                image["file_name"] = image["coco_url"].replace(COCO_URL, "")

    def get_cat_ids(self, cat_names: Sequence[str] = (), **_: Any) -> list[int]:
        """Return the category ids of class names, in the order of the names."""
        ids = defaultdict(list)
        for category in self.cats.values():
            ids[in_lvis_spelling(category["name"])].append(category["id"])
        cat_names = [in_lvis_spelling(name) for name in cat_names]
        unknown = [name for name in cat_names if name not in ids]
        if unknown:
            some = [*map(repr, ids)][:5] + ["..."] * (len(ids) > 5)
            raise ValueError(
                f"{self._path}: has no category {unknown[0]!r} ({len(unknown)} of the "
                f"{len(cat_names)} metainfo['classes'] are unknown); its {len(ids)} "
                f"categories are {', '.join(some)}"
            )
        for name in cat_names:
            if len(ids[name]) > 1:
                raise ValueError(
                    f"{self._path}: categories {ids[name][0]} and {ids[name][1]} are "
                    f"both named {name!r}, expected different names; rename one"
                )
        return [ids[name][0] for name in cat_names]


@DATASETS.register_module()
class LVISFormatDataset(CocoDataset):
    """Images with annotations in LVIS's or COCO's format, and classes of your own.

    Unlike ``LVISV1Dataset`` it reads an image's ``file_name``, or LVIS v1's
    ``coco_url`` if there is none. Label k is ``metainfo['classes'][k]`` in whatever
    order the file lists its categories; other categories of the file are left out.

    Args:
        *args: As in mmdet's CocoDataset.
        data_prefix: ``dict(img=...)``, the folder of the images below ``data_root``, by
            default ``data_root`` itself.
        **kwargs: As in mmdet's CocoDataset. ``metainfo=dict(classes=...)`` is required:
            the class names, or the path of a file with one name a line.

    Raises:
        ValueError: If the classes are not a sequence of different names that the
            annotation file has.
    """

    METAINFO: ClassVar[dict] = {}
    COCOAPI = _AnnotationFile

    def __init__(
        self, *args: Any, data_prefix: dict | None = None, **kwargs: Any
    ) -> None:
        # MMEngine's default is not the key that mmdet reads.
        super().__init__(*args, data_prefix=data_prefix or dict(img=""), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return what is known of each image; see CocoDataset."""
        classes = self._metainfo.get("classes", ())
        if isinstance(classes, str) or not classes or len({*classes}) < len(classes):
            raise ValueError(
                f"metainfo['classes']={classes!r}: expected different class names of "
                f"{self.ann_file}, such as metainfo=dict(classes=('cat', 'dog')); a "
                f"single one as ('cat',)"
            )
        return super().load_data_list()
