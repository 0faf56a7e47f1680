"""What importing apa_mmdet.classification changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="apa_mmdet.classification needs mmpretrain")

REPO = Path(__file__).parents[2]
CODE = """
import json, runpy
import apa_mmdet
from mmpretrain.utils import register_all_modules
register_all_modules()
record = runpy.run_path("tests/record_installation.py")
before = record["outside"]()
import apa_mmdet.classification
print(json.dumps([sorted(each) for each in record["changes"](before)]))
"""


def test_it_replaces_nothing_and_adds_types_to_mmpretrain():
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    replaced, added = json.loads(done.stdout.splitlines()[-1])
    assert replaced == []
    assert added == sorted(
        [
            "mmpretrain dataset: LongTailDataset",
            "mmpretrain dataset: SplitFileDataset",
            "mmpretrain hook: ClassFrequencyHook",
            "mmpretrain hook: RedrawActivationsHook",
            "mmpretrain metric: LongTailAccuracy",
            "mmpretrain model: APAClassifier",
            "mmpretrain model: APALoss",
            "mmpretrain model: APAResNeXt",
            "mmpretrain model: APAResNet",
            "mmpretrain model: CosineLinear",
            "mmpretrain model: LongTailClsHead",
            "mmpretrain model: SEResNetCIFAR",
            "mmpretrain optimizer wrapper constructor: DefaultOptimWrapperConstructor",
            "mmpretrain transform: CIFARAutoAugment",
        ]
    )
