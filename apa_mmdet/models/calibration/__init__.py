"""Test-time calibration of box scores for long-tailed data.

A config chooses it for any box head, mmdet's or this package's::

    model = dict(test_cfg=dict(rcnn=dict(calibration=dict(type='FRACAL'))))

- :mod:`.rules` has the calibrations, functions of logits and class statistics;
  :mod:`.names` builds them from configs and command lines;
- :mod:`.statistics` keeps those statistics in the model and its checkpoints. The
  engine's ``ClassFrequencyHook`` reads them from the training data;
- :mod:`.fractal` measures how evenly the boxes of a class are spread over the images;
- :mod:`.roi_head` makes a RoI head use all this, several calibrations at a time if the
  config lists them.
"""

from .fractal import fractal_dimension
from .roi_head import calibrate, check_statistics
from .rules import FRACAL, NORCAL, LogitAdjustment, PostCompensation
from .statistics import ClassStatistics

__all__ = [
    "FRACAL",
    "NORCAL",
    "ClassStatistics",
    "LogitAdjustment",
    "PostCompensation",
    "calibrate",
    "check_statistics",
    "fractal_dimension",
]
