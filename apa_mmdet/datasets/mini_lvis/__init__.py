"""Mini-LVIS: a small synthetic data set with a long tail, in LVIS v1 format.

Forty classes, the product of eight shapes and five skins, are drawn on noisy
backgrounds. At the default size ten are frequent, fifteen common and fifteen rare.
Every rare class shares its shape with a frequent class and its skin with two, so that
what is learned on the head of the distribution can help its tail.

The generated folder has the layout of LVIS v1; an LVIS config reads it after a change
of ``data_root`` and ``classes``. Generating needs only numpy and OpenCV.

:mod:`.assignment` decides which classes each image shows, :mod:`.scenes` draws an image
and the masks of its objects, :mod:`.generator` writes images and annotations.
"""

from .assignment import CLASSES
from .generator import MiniLVIS, make_mini_lvis

__all__ = ["CLASSES", "MiniLVIS", "make_mini_lvis"]
