"""Workarounds that MMEngine, its forks and lvis need with current torch and numpy.

Each links the upstream issue and names the version that makes it unnecessary; applying
it twice changes nothing. ``apa_mmdet/__init__.py`` applies them all.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np
import torch

from .stand_ins import STAND_INS


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read the content of MMEngine's checkpoints.

    Without it, resuming and testing raise ``UnpicklingError`` since torch 2.6: the
    message hub contains HistoryBuffer, numpy scalars and arrays, and a pickled
    ``getattr``; third-party checkpoints often also contain the ``argparse.Namespace``
    of their training run. The objects added to torch's list are stand-ins that check
    their input (:mod:`apa_mmdet.compat.stand_ins`). Do not also add numpy's own
    functions: which of two entries of one name is used is undefined.

    Below torch 2.6 this does nothing: ``torch.load`` trusts the file by default, and
    its list does not accept pairs of object and name (pytorch/pytorch#142153).

    Upstream: open-mmlab/mmengine#1655. Unnecessary from: none yet (0.10.7 is the
    latest release).
    """
    if torch.__version__ >= (2, 6):
        torch.serialization.add_safe_globals(
            [(stand_in, name) for name, stand_in in STAND_INS.items()]
        )


def refuse_untrusted_checkpoints() -> None:
    """Stop OneDL's MMEngine from loading a checkpoint that torch has refused.

    Its ``_safe_torch_load`` puts Python's own ``getattr`` on torch's list, and when
    torch refuses a file, reads it again with ``weights_only=False``, which runs any
    code in the file. OpenMMLab's releases have no such function.

    Upstream: open-mmlab/mmengine#1654, which proposed the function that OneDL ships.
    Unnecessary from: none yet (onedl-mmengine 0.10.12 has it).
    """
    from mmengine.runner import checkpoint

    if hasattr(checkpoint, "_safe_torch_load"):
        checkpoint._safe_torch_load = _torch_load


def _torch_load(file: Any, map_location: Any = None, weights_only: Any = None) -> Any:
    """``torch.load`` with torch's own default for ``weights_only``."""
    return torch.load(file, map_location=map_location, weights_only=weights_only)


def refuse_untrusted_downloads() -> None:
    """Make MMEngine read downloaded checkpoints as it reads local files.

    For URLs it calls ``torch.hub.load_state_dict_from_url``, which by default runs any
    code in the file, in current torch as well.

    Below torch 2.6 this does nothing, as in :func:`allow_mmengine_checkpoints`.

    Upstream: no known report. Unnecessary from: none yet (0.10.7 is the latest
    release).
    """
    from mmengine.runner import checkpoint

    if torch.__version__ >= (2, 6):
        checkpoint.load_url = functools.partial(
            torch.hub.load_state_dict_from_url, weights_only=True
        )


def restore_np_float_in_lvis() -> None:
    """Give ``np.float`` to ``lvis.eval``, which uses it, and to no other module.

    Without it, on numpy 1.24 and later, LVIS evaluation ends in ``AttributeError``
    after all predictions have been made.

    Upstream: lvis-dataset/lvis-api#37, fixed by its #42 in the repository.
    Unnecessary from: the first release after 0.5.3 (none yet).
    """
    import lvis.eval

    if not hasattr(lvis.eval.np, "float"):
        numpy = ModuleType("numpy")
        numpy.float, numpy.__getattr__ = float, functools.partial(getattr, np)
        lvis.eval.np = numpy
