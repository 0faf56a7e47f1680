"""Own data in LVIS's format, class frequencies, files of configs, and mini-LVIS."""

from .class_frequency import class_frequency
from .data_files import check_files
from .data_root import set_data_root

__all__ = ["check_files", "class_frequency", "set_data_root"]
