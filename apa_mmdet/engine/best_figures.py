"""What MMEngine must know to save the best checkpoint by LVIS figures."""

from __future__ import annotations

from mmengine.hooks import CheckpointHook, EarlyStoppingHook

# Parts of the names of LVISMetric's and LVISFastMetric's results: lvis/bbox_APr,
# lvis/segm_FixedAP, lvis/ARs@300. MMEngine compares without regard to case, so that
# "AP" would also be found in "mape", an error.
_HIGHER_IS_BETTER = ("bbox_AP", "segm_AP", "_FixedAP", "ARs@", "ARm@", "ARl@")


def register_names() -> None:
    """Let ``save_best`` and early stopping infer that a higher figure is better.

    Both know COCO's ``mAP`` and refuse LVIS's names, in ``save_best='auto'`` only after
    the first validation.
    """
    for hook in (CheckpointHook, EarlyStoppingHook):
        names = hook._default_greater_keys
        names += [name for name in _HIGHER_IS_BETTER if name not in names]
