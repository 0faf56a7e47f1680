"""Operation counts of AGLU, APA and log APA for MMEngine's complexity analysis.

MMDetection's ``tools/analysis_tools/get_flops.py`` traces the model and looks up each
traced operation in a table in MMEngine, to which this module adds the activations.

Per element, with the signs absorbed by the constants:

=========  =========================================================  =====
function   operations                                                 count
=========  =========================================================  =====
log_apa    ``kappa * x``, exp, ``lam *``, log1p, ``-1 / lam *``           5
apa        the same, exp                                                  6
aglu       the same, exp, ``x *``                                         7
=========  =========================================================  =====

exp and log1p count as one operation each; the guards that keep the result finite and
conversions of the dtype do not count. MMEngine counts nothing for ReLU, SiLU, GELU and
sigmoid, so a converted detector shows these operations on top of the original's.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

_PER_ELEMENT = {"log_apa": 5, "apa": 6, "aglu": 7}
# The native operators, and the Function that apa_mmdet.ops.plain uses instead, which a
# trace knows only by its class's name.
_KINDS = ("apa_mmdet::apa", "apa_mmdet::aglu", "prim::PythonOp._PlainAPA")


def count(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Return the operation count of one call in a traced graph, by function name."""
    node = outputs[0].node()
    if node.kind() == "prim::PythonOp":
        name, *_ = node.scalar_args()
    else:
        name = node.kind().removeprefix("apa_mmdet::")
    return Counter({name: _PER_ELEMENT[name] * prod(outputs[0].type().sizes())})


def count_none(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count nothing, as for ReLU; None in the table would not silence a Function."""
    return Counter()


def register_operators() -> None:
    """Add the activations to MMEngine's tables; do nothing if it has no tables."""
    try:
        from mmengine.analysis import complexity_analysis
    except ImportError:
        return
    # The second table counts the outputs of convolutions and matrix products only,
    # and warns about every operation that it does not know.
    for table, handle in (
        ("_DEFAULT_SUPPORTED_FLOP_OPS", count),
        ("_DEFAULT_SUPPORTED_ACT_OPS", count_none),
    ):
        getattr(complexity_analysis, table, {}).update(dict.fromkeys(_KINDS, handle))
