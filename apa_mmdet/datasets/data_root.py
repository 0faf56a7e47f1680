"""Moving a config's data to another folder."""

from __future__ import annotations

import os.path as osp
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from .data_files import named_dicts

if TYPE_CHECKING:
    from mmengine.config import Config

# Names of fields with paths of data, such as ann_file, data_prefix and seg_prefix, and
# not with paths of output. The classes in metainfo may be the path of a list.
_PATHS = re.compile(
    r"(?!out_|outfile_|work_|tmp_|log_|show_|collect_)"
    r"\w+_(root|file|prefix|dir|folder|path)s?|metainfo"
)


def set_data_root(cfg: Config, root: str) -> None:
    """Point a config's data sets and evaluators at another folder.

    Every path of data in the config that is the config's ``data_root``, or lies in it,
    is changed in place. MMEngine's own ``--cfg-options data_root=...`` changes only the
    top-level variable.

    Args:
        cfg: The config.
        root: The new folder, or its URL.

    Raises:
        ValueError: If ``root`` is not a path, or the config does not have a
            ``data_root`` in which its data lie.
    """
    if not isinstance(root, str) or not root:
        raise ValueError(f"data_root={root!r}, expected the path of a folder")
    old = cfg.get("data_root")
    old_parts = PurePosixPath(old).parts if isinstance(old, str) else ()
    if not old_parts:
        has = "no data_root" if old is None else f"data_root={old!r}"
        raise ValueError(_cannot_move(cfg, f"the config has {has}"))
    new = osp.join(osp.expanduser(root), "")
    moved = []

    def move(value: Any, is_path: bool = False) -> Any:
        if isinstance(value, dict):
            for key in value:
                is_field = _PATHS.fullmatch(str(key)) is not None
                value[key] = move(value[key], is_path or is_field)
        elif isinstance(value, (list, tuple)):
            value = type(value)(move(item, is_path) for item in value)
        elif is_path and isinstance(value, str):
            parts = PurePosixPath(value).parts
            if parts[: len(old_parts)] == old_parts:
                moved.append(value)
                rest = "/".join(parts[len(old_parts) :])
                value = new + rest + "/" * (bool(rest) and value.endswith("/"))
        return value

    move(cfg._cfg_dict)
    if moved == [old]:  # only the variable
        raise ValueError(_cannot_move(cfg, f"nothing else lies in data_root={old!r}"))


def _cannot_move(cfg: Config, reason: str) -> str:
    names = []
    for part, value in cfg.items():
        field = {"dataloader": "data_root", "evaluator": "ann_file"}
        field = field.get(part.rpartition("_")[2])
        if field:
            names += [
                f"{name}.{field}"
                for name, inner in named_dicts(value, part)
                if "ann_file" in inner
            ]
    fields = ", ".join(names) or "the data_root of its data sets"
    return f"data_root cannot be replaced in this config: {reason}; set {fields}"
