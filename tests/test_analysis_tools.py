"""The benchmarks, with little to measure."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from apa_mmdet.testing.configs import read_config
from apa_mmdet.testing.training_step import TrainingStep

R18 = "configs/mini_lvis/mask_rcnn_r18_apa.py"


@pytest.fixture
def tool(run_tool, monkeypatch, tmp_path):
    """The function that runs a tool in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    return run_tool


def test_benchmark_of_activations(tool, tmp_path):
    small = ("--shapes", "2x8x16x16", "2x5x8", "--dtypes", "float32", "--rounds", 1)
    layouts = ("--layouts", "contiguous", "channels_last")
    options = ("--device", "cpu", "--rois", 4)
    shown = tool("benchmark_activation.py", *small, *layouts, *options)
    assert "2 x 5 x 8, float32" in shown
    path = tmp_path / "docs/benchmarks/benchmark_activation.json"
    results = json.loads(path.read_text())
    assert results["machine"]["torch"]
    saved = {}
    for row in results["rows"]:
        saved.setdefault(row["activation"], []).append(row["saved_inputs"])
    assert saved["SiLU"] == saved["ReLU"] == [1, 1, 1]  # of each shape and layout
    for name in ("AGLU", "AGLU, fixed", "AGLU, per channel", "APA"):
        assert max(saved[name]) <= 1.2, name  # the input, and its parameters
    assert set(saved) == {row["activation"] for row in results["host"]}
    assert min(row["both_us"] for row in results["host"]) > 0
    losses = {row["loss"]: row["both_ms"] for row in results["losses"]}
    assert {"softmax", "Seesaw", "APALoss, class"} < set(losses)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_benchmark_of_activations_needs_no_mmdetection(tmp_path, repo):
    args = ["--shapes", "1x2x3", "--dtypes", "float32", "--rounds", "1"]
    args += ["--device", "cpu", "--out", str(tmp_path)]
    path = "tools/analysis_tools/benchmark_activation.py"
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['mmengine', 'mmcv', 'mmdet']))\n"
        f"sys.argv[1:] = {args}\n"
        f"runpy.run_path({path!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    env = dict(os.environ, PYTHONPATH=str(repo))
    done = subprocess.run(command, cwd=repo, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "benchmark_activation.json").read_text())
    assert results["rows"] and results["host"] and not results["losses"]


def test_benchmark_of_training_steps(tool, tmp_path, repo):
    args = ("--relu-twin", "--backbone", "--rounds", 1, "--batch", 1)
    # On smaller images the norms' scales would weigh as much as the maps.
    size = ("--size", 256, 256, "--device", "cpu", "--name", "twins")
    config = repo / "configs/lvis/mask_rcnn_r50_apa.py"
    shown = tool("benchmark_train_step.py", *args, *size, config)
    assert "1 x 3 x 256 x 256, fp32, backbone, ratios to each config's twin" in shown
    results = json.loads((tmp_path / "docs/benchmarks/twins.json").read_text())
    assert results["machine"]["torch"]
    (row,) = results["rows"]
    assert row["config"] == "lvis/mask_rcnn_r50_apa"
    assert row["saved_ratio"] <= 1
    assert row["saved_mib"] / row["twin"]["saved_mib"] == row["saved_ratio"]
    if find_spec("triton") is not None:
        assert 0 < row["gpu_launches"] < row["twin"]["gpu_launches"]
    assert 0 < row["host_ms"] <= row["ms"]


def test_a_training_step_with_amp_computes_in_half_precision(repo):
    cfg = read_config(repo / R18)
    step = TrainingStep(cfg, 1, (64, 64), "cpu", amp="bf16", backbone_only=True)
    dtypes = set()
    step.model.conv1.register_forward_hook(lambda *call: dtypes.add(call[-1].dtype))
    before = step.model.conv1.weight.clone()
    step()
    assert dtypes == {torch.bfloat16}
    assert step.model.conv1.weight.grad.any()
    assert torch.equal(step.model.conv1.weight, before)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "benchmark_activation.py",
            ("--shapes", "8x0x4"),
            "8x0x4: expected sizes of at least 1",
        ),
        ("benchmark_train_step.py", ("no.py",), "no such config file: no.py"),
        ("benchmark_train_step.py", ("--device", "abacus", R18), "--device: abacus: "),
        (
            "benchmark_train_step.py",
            ("--rounds", 0, R18),
            "--rounds: 0: expected at least 1",
        ),
    ],
)
def test_benchmarks_refuse(tool, capsys, tmp_path, name, args, message):
    with pytest.raises(SystemExit):
        tool(name, *args)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
