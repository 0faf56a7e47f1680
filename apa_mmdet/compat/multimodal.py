"""MMPretrain beside a transformers whose functions have moved."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from ..requirements import is_installed


def leave_out_broken_multimodal() -> None:
    """Let MMPretrain's models be imported without the multimodal ones that cannot be.

    Without it, where MMPretrain and a current transformers are both installed,
    ``import mmdet.models`` ends in ``TypeError: NoneType takes no arguments``: mmdet
    imports MMPretrain's models, these import the multimodal ones if there is any
    transformers, and those need names that transformers has moved or removed. They are
    then replaced by MMPretrain's own placeholders for an environment without
    transformers. Where all names exist, or one of the two is missing, this does
    nothing.

    Upstream: no known report. Unnecessary from: none yet (mmpretrain 1.2.0 is the
    latest release; onedl-mmpretrain 1.3.6 is made for transformers below 5).
    """
    if not (is_installed("mmpretrain") and is_installed("transformers")):
        return
    root = Path(find_spec("mmpretrain").origin).parent
    files = [root / "models/utils/tokenizer.py", root / "models/utils/huggingface.py"]
    if all(map(_names_exist, [*files, *root.glob("models/multimodal/**/*.py")])):
        return
    # This module decides. Loaded on its own it imports nothing else of MMPretrain.
    name = "mmpretrain.utils.dependency"
    if name not in sys.modules:
        spec = spec_from_file_location(name, root / "utils/dependency.py")
        dependency = module_from_spec(spec)
        spec.loader.exec_module(dependency)
        sys.modules[name] = dependency
    sys.modules[name].WITH_MULTIMODAL = False


def _names_exist(file: Path) -> bool:
    """Return whether a source file finds what it imports from transformers."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level:
            continue
        if node.module.partition(".")[0] != "transformers":
            continue
        try:
            module = import_module(node.module)
        except ImportError:
            return False
        if not all(hasattr(module, alias.name) for alias in node.names):
            return False
    return True
