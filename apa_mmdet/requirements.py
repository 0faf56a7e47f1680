"""What must be installed with this package, and the commands that install it.

The versions below are the only source of the project's pins: a test compares
``pyproject.toml`` and ``tools/setup_env.sh`` with them. This module needs the standard
library only.
"""

from __future__ import annotations

import re
from importlib import import_module, metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

# Import name to (distribution, version to install), for each of the two stacks.
OPENMMLAB = {
    "mmengine": ("mmengine", "0.10.7"),
    "mmcv": ("mmcv", "2.1.0"),
    "mmdet": ("mmdet", "3.3.0"),
}
ONEDL = {
    "mmengine": ("onedl-mmengine", "0.10.12"),
    "mmcv": ("onedl-mmcv", "2.3.6"),
    "mmdet": ("onedl-mmdetection", "3.5.1"),
}
# The same of what only apa_mmdet.classification needs.
MMPRETRAIN = ("mmpretrain", "1.2.0")
MMPRETRAIN_ONEDL = ("onedl-mmpretrain", "1.3.6")
_TORCHVISION_FAULT = (
    "mmpretrain needs torchvision, which does not work with this torch ({})"
)
PACKAGE_SCHEME = "package://"
MINIMUM = {
    "torch": (2, 1),
    "mmengine": (0, 10),
    "mmcv": (2, 0),
    "mmdet": (3, 0),
    "mmpretrain": (1, 0),
}


def is_installed(name: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    spec = find_spec(name)
    # A folder that happens to have the name is also found, but has no origin.
    return spec is not None and spec.origin is not None


def package_file(url: str) -> str:
    """Return the path of ``package://NAME/PATH``, a file of an installed package.

    Raises:
        FileNotFoundError: If the package is not installed, with the command that
            installs it, or has no such file.
    """
    name, _, path = url[len(PACKAGE_SCHEME) :].partition("/")
    if not is_installed(name):
        raise FileNotFoundError(
            f"{url}: the package {name} is not installed; run\n"
            f"    pip install {name.replace('_', '-')}"
        )
    file = Path(find_spec(name).origin).parent / path
    if not file.is_file():
        raise FileNotFoundError(f"{url}: not found; {name} has no file {file}")
    return str(file)


def check_requirements() -> None:
    """Check that torch, mmengine, mmcv and mmdet are installed and compatible.

    Raises:
        ImportError: If one of them is missing, too old, or does not work with the
            others. The message gives the command that fixes it.
    """
    if not is_installed("torch"):
        _refuse("torch is not installed", 'pip install "torch>=2.1"')
    _require_minimum("torch", "torch", 'pip install "torch>=2.1"')

    is_onedl = _is_onedl()
    stack = ONEDL if is_onedl else OPENMMLAB

    missing = [name for name in stack if not is_installed(name)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        _refuse(
            f"{' and '.join(missing)} {are} not installed", _install(stack, *missing)
        )
    for name, (distribution, _) in stack.items():
        _require_minimum(name, distribution, _install(stack, name))

    # MMEngine's package_utils imports it for every config that inherits from mmdet::;
    # its repository no longer does (open-mmlab/mmengine#1676), its releases do.
    if not is_onedl and find_spec("pkg_resources") is None:
        _refuse(
            "mmengine needs pkg_resources, which setuptools 81 removed",
            'pip install "setuptools<81"',
        )

    if not PathFinder.find_spec("_ext", find_spec("mmcv").submodule_search_locations):
        _refuse(
            "mmcv is installed without its compiled ops (mmcv._ext)",
            _rebuild_mmcv(stack),
        )
    import_module("mmcv")
    try:
        import_module("mmcv._ext")
    except ImportError as error:
        _refuse(
            f"mmcv's compiled ops do not load with this torch ({error})",
            _rebuild_mmcv(stack),
        )
    try:
        import_module("mmdet")
    except AssertionError as error:  # mmdet's own check of the other two
        _refuse(
            f"mmdet rejects an installed version ({error})", _install(stack, *stack)
        )
    # mmdet imports MMPretrain if it is there, and does without only for ImportErrors.
    if is_installed("mmpretrain") and is_installed("torchvision"):
        try:
            import_module("torchvision")
        except ImportError:
            pass
        except (OSError, RuntimeError) as error:
            distribution, _ = MMPRETRAIN_ONEDL if is_onedl else MMPRETRAIN
            _refuse(
                _TORCHVISION_FAULT.format(error),
                f"{_install_torchvision()}\nor, to do without classification,\n"
                f"    pip uninstall {distribution}",
            )


def check_mmpretrain() -> None:
    """Check that MMPretrain and the torchvision that it imports are installed.

    Raises:
        ImportError: If one of them is missing, too old, or does not work with torch.
            The message gives the command that fixes it.
    """
    check_requirements()
    distribution, version = MMPRETRAIN_ONEDL if _is_onedl() else MMPRETRAIN
    command = f"pip install {distribution}=={version} model-index"
    if not is_installed("mmpretrain"):
        _refuse_classification("mmpretrain is not installed", command)
    if (_version(distribution) or MINIMUM["mmpretrain"]) < MINIMUM["mmpretrain"]:
        _refuse_classification(
            f"{distribution} {metadata.version(distribution)} is too old", command
        )
    # MMPretrain requires the distribution modelindex, which contains nothing.
    if not is_installed("modelindex"):
        _refuse_classification(
            "mmpretrain needs model-index, which is not installed", command
        )

    command = _install_torchvision()
    if not is_installed("torchvision"):
        _refuse_classification(
            "mmpretrain needs torchvision, which is not installed", command
        )
    try:
        import_module("torchvision")
    except ImportError as error:
        _refuse_classification(_TORCHVISION_FAULT.format(error), command)


def _is_onedl() -> bool:
    return any(_version(distribution) for distribution, _ in ONEDL.values())


def _version(distribution: str) -> tuple[int, ...] | None:
    """Return the leading numbers of an installed version, None if not installed."""
    try:
        text = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _require_minimum(name: str, distribution: str, command: str) -> None:
    minimum = MINIMUM[name]
    if (_version(distribution) or minimum) < minimum:
        _refuse(
            f"{distribution} {metadata.version(distribution)} is older than "
            f"{'.'.join(map(str, minimum))}",
            command,
        )


def _install(stack: dict, *names: str) -> str:
    """Return the commands that install these packages, in an order that works."""
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


def _install_torchvision() -> str:
    # The releases of torch 2.0, 2.1, ... and of torchvision 0.15, 0.16, ... are pairs.
    _, minor, *_ = _version("torch")
    return f'pip install "torchvision==0.{minor + 15}.*"'


def _rebuild_mmcv(stack: dict) -> str:
    """Return the command that compiles mmcv again, ignoring pip's cached wheel."""
    return (
        "pip install --no-cache-dir --no-build-isolation --force-reinstall --no-deps "
        "{}=={}".format(*stack["mmcv"])
    )


def _refuse(problem: str, command: str) -> NoReturn:
    raise ImportError(
        f"apa_mmdet cannot be used here: {problem}. Run\n"
        f"    {command}\n"
        "or, in a checkout of apa_mmdet, `bash tools/setup_env.sh`, which creates a "
        "complete environment. Without mmengine installed, apa_mmdet.ops, .layers, "
        ".conversion, .optim and .evaluation work without MMDetection."
    ) from None


def _refuse_classification(problem: str, command: str) -> NoReturn:
    raise ImportError(
        f"apa_mmdet.classification cannot be used here: {problem}. Run\n"
        f"    {command}\n"
        "or, in a checkout of apa_mmdet, `APA_MMDET_CLASSIFICATION=1 bash "
        "tools/setup_env.sh`, which creates a complete environment. The rest of "
        "apa_mmdet does not need MMPretrain."
    ) from None
