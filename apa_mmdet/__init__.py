"""APA and AGLU activations, gates and classification heads for MMDetection 3.x.

Importing this package registers everything it has, so a config needs one line::

    custom_imports = dict(imports=['apa_mmdet'], allow_failed_imports=False)

MMDetection's own ``tools/train.py`` and ``tools/test.py`` import it from there. Before
that, the import checks that torch, mmengine, mmcv and mmdet are there and fit, and
applies the repairs of :mod:`apa_mmdet.compat`.

With the environment variable ``APA_MMDET_OPS_ONLY=1`` neither happens: then
:mod:`apa_mmdet.ops` and :mod:`apa_mmdet.layers` can be used where only torch is.
"""

from __future__ import annotations

import os
import re
from importlib import import_module, metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import NoReturn

from .version import __version__

__all__ = ["__version__"]

# Import name to (distribution, release to install), for each of the two stacks.
_OPENMMLAB = {
    "mmengine": ("mmengine", "0.10.7"),
    "mmcv": ("mmcv", "2.1.0"),
    "mmdet": ("mmdet", "3.3.0"),
}
_ONEDL = {
    "mmengine": ("onedl-mmengine", "0.10.12"),
    "mmcv": ("onedl-mmcv", "2.3.6"),
    "mmdet": ("onedl-mmdetection", "3.5.1"),
}
_MINIMUM = {"mmengine": (0, 10), "mmcv": (2, 0), "mmdet": (3, 0)}


def _version(distribution: str) -> tuple[int, ...] | None:
    """Leading numbers of an installed distribution's version, None if absent."""
    try:
        text = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _install(stack: dict, *names: str) -> str:
    """The commands that install these packages of a stack, in the order that works."""
    commands = []
    if "mmcv" in names:
        commands += [
            'pip install "setuptools<81" wheel ninja psutil',
            "pip install --no-build-isolation {}=={}".format(*stack["mmcv"]),
        ]
    others = ["{}=={}".format(*stack[name]) for name in names if name != "mmcv"]
    if others:
        commands.append(f"pip install {' '.join(others)}")
    return " && ".join(commands)


def _rebuild_mmcv(stack: dict) -> str:
    """The command that compiles mmcv anew, whatever wheel pip has kept of it."""
    return (
        "pip install --no-cache-dir --no-build-isolation --force-reinstall --no-deps "
        "{}=={}".format(*stack["mmcv"])
    )


def _refuse(problem: str, command: str) -> NoReturn:
    raise ImportError(
        f"apa_mmdet cannot be used here: {problem}. Run\n"
        f"    {command}\n"
        "or, in a checkout of apa_mmdet, `bash tools/setup_env.sh`, which makes an "
        "environment with everything in it. To use only apa_mmdet.ops and the "
        "activation layers without MMDetection, set APA_MMDET_OPS_ONLY=1."
    ) from None


def _check_stack() -> None:
    """Raise one ImportError that names the remedy if the stack does not fit."""
    if find_spec("torch") is None:
        _refuse("torch is not installed", 'pip install "torch>=2.1"')
    if (_version("torch") or (2, 1)) < (2, 1):
        _refuse(
            f"torch {metadata.version('torch')} is older than 2.1",
            'pip install "torch>=2.1"',
        )

    is_onedl = any(_version(distribution) for distribution, _ in _ONEDL.values())
    stack = _ONEDL if is_onedl else _OPENMMLAB

    specs = {name: find_spec(name) for name in stack}
    # A folder that happens to have the name is found as well, without an origin.
    missing = [name for name, spec in specs.items() if not (spec and spec.origin)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        _refuse(
            f"{' and '.join(missing)} {are} not installed", _install(stack, *missing)
        )
    for name, minimum in _MINIMUM.items():
        distribution, _ = stack[name]
        if (_version(distribution) or minimum) < minimum:
            _refuse(
                f"{distribution} {metadata.version(distribution)} is older than "
                f"{'.'.join(map(str, minimum))}",
                _install(stack, name),
            )

    # MMEngine's package_utils imports it for every config that inherits from mmdet::;
    # its repository no longer does (open-mmlab/mmengine#1676), its releases do.
    needs_pkg_resources = _version("mmengine") and not _version("onedl-mmengine")
    if needs_pkg_resources and find_spec("pkg_resources") is None:
        _refuse(
            "mmengine needs pkg_resources, which this setuptools no longer has",
            'pip install "setuptools<81"',
        )

    if not PathFinder.find_spec("_ext", specs["mmcv"].submodule_search_locations):
        _refuse(
            "mmcv is installed without its compiled ops (mmcv._ext)",
            _rebuild_mmcv(stack),
        )
    import_module("mmcv")
    try:
        import_module("mmcv._ext")
    except ImportError as error:
        _refuse(
            f"mmcv's compiled ops do not load beside this torch ({error})",
            _rebuild_mmcv(stack),
        )
    try:
        import_module("mmdet")
    except AssertionError as error:  # mmdet's own check of mmcv and mmengine
        _refuse(
            f"mmdet does not accept what it found ({error})", _install(stack, *stack)
        )


if os.environ.get("APA_MMDET_OPS_ONLY") != "1":
    _check_stack()

    from . import compat

    compat.apply()

    from . import datasets, engine, evaluation, layers, models

    __all__ += ["datasets", "engine", "evaluation", "layers", "models"]
