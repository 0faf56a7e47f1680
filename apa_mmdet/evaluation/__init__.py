"""LVIS evaluation: lvis-api's figures, from arrays.

It needs neither torch nor MMDetection. The metric for MMDetection's configs does; it is
:class:`apa_mmdet.evaluation.lvis_metric.LVISFastMetric`.
"""

from .bootstrap import compare
from .detections import Detections
from .ground_truth import GroundTruth, load_ground_truth
from .lvis_eval import LVISResult, evaluate
from .results_file import read_results

__all__ = [
    "Detections",
    "GroundTruth",
    "LVISResult",
    "compare",
    "evaluate",
    "load_ground_truth",
    "read_results",
]
