"""Operation counts of APA, AGLU and ln APA for MMEngine's complexity analysis.

MMDetection's ``tools/analysis_tools/get_flops.py`` traces the model and looks each
operation up in a table of MMEngine's. The activations are one operation there, a
``torch.autograd.Function``, which the table does not have by itself; elsewhere a trace
holds the plain operations that can be saved.

Per element, with the signs folded into the constants:

=========  =========================================================  =====
function   operations                                                 count
=========  =========================================================  =====
log_apa    ``kappa * x``, exp, ``lam *``, log1p, ``-1 / lam *``           5
apa        the same, exp                                                  6
aglu       the same, exp, ``x *``                                         7
=========  =========================================================  =====

exp and log1p count as one operation each. What the implementation does on top to stay
finite is not counted, nor is a conversion of the dtype.

MMEngine counts nothing for a ReLU and lists SiLU, GELU and sigmoid as unsupported,
which also adds nothing. A converted detector therefore shows these operations on top
of its twin's, although the twin's activations are not free either.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from ..ops.functional import _Activation, counted

_PER_ELEMENT = {"log_apa": 5, "apa": 6, "aglu": 7}


def count(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Return the operations of one call in a traced graph, by the function's name.

    Args:
        inputs: Its tensors as ``torch._C.Value``: x, lam and kappa.
        outputs: Its result as ``torch._C.Value``, of the shape of x.
    """
    # All three functions are one node type; their name is a constant of the node.
    name, *_ = outputs[0].node().scalar_args()
    return Counter({name: _PER_ELEMENT[name] * prod(outputs[0].type().sizes())})


def count_none(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count nothing, as for a ReLU. The table's None does not reach a Function."""
    return Counter()


def register() -> None:
    """Enter the activations in MMEngine's tables; do nothing where there are none."""
    try:
        from mmengine.analysis import complexity_analysis, jit_analysis
    except ImportError:
        return
    trace = jit_analysis._get_scoped_trace_graph
    if not hasattr(trace, "__wrapped__"):  # once, if this is called again
        jit_analysis._get_scoped_trace_graph = counted()(trace)
    kind = f"prim::PythonOp.{_Activation.__name__}"
    # The second table counts the outputs of convolutions and matrix products alone,
    # and warns of every operation that it does not know.
    for table, handle in (
        ("_DEFAULT_SUPPORTED_FLOP_OPS", count),
        ("_DEFAULT_SUPPORTED_ACT_OPS", count_none),
    ):
        getattr(complexity_analysis, table, {})[kind] = handle
