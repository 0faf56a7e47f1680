"""Operation counts of AGLU, APA and log APA for MMEngine's complexity analysis.

MMDetection's ``tools/analysis_tools/get_flops.py`` traces the model and looks up each
traced operation in a table in MMEngine. While it traces, each activation is a single
operation, a ``torch.autograd.Function``, which this module adds to the table. Any other
trace consists of plain operations, so that it can be saved.

Per element, with the signs folded into the constants:

=========  =========================================================  =====
function   operations                                                 count
=========  =========================================================  =====
log_apa    ``kappa * x``, exp, ``lam *``, log1p, ``-1 / lam *``           5
apa        the same, exp                                                  6
aglu       the same, exp, ``x *``                                         7
=========  =========================================================  =====

exp and log1p count as one operation each. The guards that keep the result finite are
not counted, nor is a conversion of the dtype.

MMEngine counts nothing for ReLU, and lists SiLU, GELU and sigmoid as unsupported, which
adds nothing either. A converted detector therefore shows these operations on top of
those of the original, although the original's activations are not free.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from ..ops.functional import _Activation, counted

_PER_ELEMENT = {"log_apa": 5, "apa": 6, "aglu": 7}


def count(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Return the operation count of one call in a traced graph, by function name.

    Args:
        inputs: The call's tensors x, lam and kappa, as ``torch._C.Value``.
        outputs: Its result, of the shape of x, as ``torch._C.Value``.
    """
    # All three functions have one node type; their name is a constant of the node.
    name, *_ = outputs[0].node().scalar_args()
    return Counter({name: _PER_ELEMENT[name] * prod(outputs[0].type().sizes())})


def count_none(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count nothing, as for ReLU. A None in the table has no effect on a Function."""
    return Counter()


def register_operators() -> None:
    """Add the activations to MMEngine's tables; do nothing if it has no tables."""
    try:
        from mmengine.analysis import complexity_analysis, jit_analysis
    except ImportError:
        return
    trace = jit_analysis._get_scoped_trace_graph
    if not hasattr(trace, "__wrapped__"):  # once, if this is called again
        jit_analysis._get_scoped_trace_graph = counted()(trace)
    kind = f"prim::PythonOp.{_Activation.__name__}"
    # The second table counts the outputs of convolutions and matrix products only,
    # and warns about every operation that it does not know.
    for table, handle in (
        ("_DEFAULT_SUPPORTED_FLOP_OPS", count),
        ("_DEFAULT_SUPPORTED_ACT_OPS", count_none),
    ):
        getattr(complexity_analysis, table, {})[kind] = handle
