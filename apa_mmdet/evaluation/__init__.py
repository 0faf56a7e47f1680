"""LVIS evaluation that gives lvis-api's figures from arrays.

From detections to figures, one room after the other; a room imports only those above
it:

- :mod:`.core` holds arrays and rules. :class:`~.core.ground_truth.GroundTruth` and
  :class:`~.core.detections.Detections` are columns of numbers.
  :func:`~.core.evaluate.evaluate` selects the detections that LVIS judges
  (:mod:`~.core.selection`), matches them to annotations (:mod:`~.core.matching`) and
  accumulates precision and recall (:mod:`~.core.accumulate`). :mod:`~.core.classes`
  finds classes by name.
  :func:`~.core.bootstrap.compare` says whether two results differ by chance.
- :mod:`.files` reads annotation and results files as streams.
- :mod:`.store` keeps the predictions of a running model on disk, one folder for each
  process: :mod:`~.store.packing` checks and packs an image's predictions,
  :mod:`~.store.disk` writes shards and selects from them, :mod:`~.store.ranks`
  coordinates the processes.
- :mod:`.metric` is the metric for MMDetection's configs, which computes
  :mod:`.figures`; :mod:`.report` makes tables, a CSV file and a plot.

Unusable input is refused where it is read, in ``files/results.py``,
``files/annotations.py`` and ``store/packing.py``, each time in one line that names the
file, the entry (by its id, or its position from one), the field and its value. JSON is
checked by :mod:`~.files.json_stream`, a field by :mod:`~.core.values`, the form of a
mask by :mod:`~.core.segmentation`, that the runs of an RLE fill its image by
:func:`~.core.masks.find_damaged`; what can be wrong with many entries is collected by
:class:`~.core.errors.InputErrors`.

Importing ``core``, ``files`` and ``report`` needs only numpy; evaluating also needs
pycocotools and tqdm. ``store`` needs torch, ``figures`` and ``metric`` need
MMDetection.
"""

from .core.bootstrap import compare
from .core.detections import Detections
from .core.evaluate import LVISResult, evaluate
from .core.ground_truth import GroundTruth
from .files.annotations import load_ground_truth
from .files.results import read_results

__all__ = [
    "Detections",
    "GroundTruth",
    "LVISResult",
    "compare",
    "evaluate",
    "load_ground_truth",
    "read_results",
]
