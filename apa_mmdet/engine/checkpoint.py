"""Reading checkpoint files, with errors that say what is wrong with them."""

from __future__ import annotations

import os.path as osp
import re
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.runner import CheckpointLoader

from ..requirements import PACKAGE_SCHEME, package_file


def read_checkpoint(
    path: str, map_location: Any = "cpu", weights_only: bool | None = True
) -> Any:
    """Return the content of a checkpoint file, by default without running code in it.

    The arguments are those of :func:`torch.load`; ``weights_only=None`` is its default,
    which runs such code before torch 2.6.

    Raises:
        FileNotFoundError: If the file does not exist.
        RuntimeError: If the file is damaged or not a checkpoint.
        UnpicklingError: The same, or the file needs an object that is not data.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return torch.load(path, map_location=map_location, weights_only=weights_only)
    except OSError:
        raise
    except Exception as caught:  # a damaged pickle can raise anything
        error = caught
    error_type = UnpicklingError if isinstance(error, UnpicklingError) else RuntimeError
    # The rest of torch's message is dropped, because it advises weights_only=False.
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        raise error_type(
            f"{path} references {refused[1]}, which checkpoints must not contain; the "
            f"file was refused and none of its code was run. Get the weights from a "
            f"source you trust"
        )
    reason = re.sub(r"(?s).*WeightsUnpickler error:\s*", "", str(error))
    reason = reason.splitlines()[0] if reason else type(error).__name__
    raise error_type(
        f"{path} cannot be read as a checkpoint ({reason}): it is damaged, cut short "
        f"or another kind of file; download it again and compare its size"
    )


def register_loader() -> None:
    """Make MMEngine read local files with :func:`read_checkpoint`.

    ``package://NAME/PATH`` is a local file, in an installed package.
    """

    def load_from_local(filename: str, map_location: Any = None) -> Any:
        return read_checkpoint(osp.expanduser(filename), map_location, None)

    def load_from_package(filename: str, map_location: Any = None) -> Any:
        return load_from_local(package_file(filename), map_location)

    CheckpointLoader.register_scheme(prefixes="", loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(
        prefixes=PACKAGE_SCHEME, loader=load_from_package, force=True
    )
