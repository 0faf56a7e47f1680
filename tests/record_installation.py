"""Print what apa_mmdet's modules change on import, and what its __init__ installs.

A script for a new process: first every module is imported without running the
package's ``__init__``, then ``__init__`` is run. Prints a JSON object.
"""

import json
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import lvis.eval  # noqa: F401  so that its attributes are compared
import mmdet.testing  # noqa: F401  registers a hook of its own
import torch
from mmdet.utils import register_all_modules
from mmengine import registry as mmengine_registry
from mmengine.analysis import complexity_analysis
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader

PACKAGES = ("lvis", "mmcv", "mmdet", "mmengine", "mmpretrain", "numpy")


def outside():
    """Return everything in other packages that importing could change, by name."""
    state = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in PACKAGES:
            continue
        for attribute, value in list(vars(module).items()):
            state[f"{name}.{attribute}"] = value
            if isinstance(value, type) and value.__module__ == name:
                for member, function in vars(value).items():
                    state[f"{name}.{attribute}.{member}"] = function
    tables = {
        "flops of": complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS,
        "activations of": complexity_analysis._DEFAULT_SUPPORTED_ACT_OPS,
        "loader for": CheckpointLoader._schemes,
        "safe": {
            item[1]: item[0]
            for item in torch.serialization.get_safe_globals()
            if isinstance(item, tuple)
        },
    }
    for hook in (CheckpointHook, EarlyStoppingHook):
        names = dict.fromkeys(hook._default_greater_keys, True)
        tables[f"{hook.__name__} maximizes"] = names
    for root in vars(mmengine_registry).values():
        if isinstance(root, Registry):
            for registry in (root, *root.children.values()):
                tables[f"{registry.scope} {root.name}"] = registry.module_dict
    for table, entries in tables.items():
        state |= {f"{table}: {key}": value for key, value in entries.items()}
    return state


def changes(before):
    """Return the names of what was replaced since, and of new entries of tables."""
    after = outside()
    replaced = {name for name in before if after.get(name) is not before[name]}
    return replaced, {name for name in after.keys() - before.keys() if ": " in name}


def module_names(root):
    """Return the names of the package's modules, without those that need MMPretrain.

    Importing ``apa_mmdet.classification`` installs it.
    """
    paths = (path.relative_to(root).with_suffix("") for path in root.rglob("*.py"))
    names = {
        ".".join((root.name, *path.parts)).removesuffix(".__init__") for path in paths
    }
    names.remove(root.name)
    return sorted(n for n in names if not n.startswith("apa_mmdet.classification"))


def main():
    register_all_modules()
    spec = find_spec("apa_mmdet")
    package = sys.modules["apa_mmdet"] = module_from_spec(spec)
    before = outside()
    modules = []
    for name in module_names(Path(package.__file__).parent):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
        replaced, added = changes(before)
        modules.append((name, sorted(replaced), sorted(added)))
    spec.loader.exec_module(package)
    replaced, added = changes(before)
    # Entries without their scope, such as "hook: CheckpointHook".
    known = {name.partition(" ")[2] for name in before if ": " in name}
    result = dict(
        modules=modules,
        replaced=sorted(replaced),
        added=sorted(added),
        shadowing=sorted(name for name in added if name.partition(" ")[2] in known),
    )
    json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
