"""LVIS evaluation: lvis-api's figures, from arrays.

What computes needs numpy and pycocotools alone; with ``APA_MMDET_OPS_ONLY=1`` the
metric for MMDetection's configs is left out.
"""

import os

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

if os.environ.get("APA_MMDET_OPS_ONLY") != "1":
    from .lvis_metric import LVISFastMetric

    __all__ += ["LVISFastMetric"]
