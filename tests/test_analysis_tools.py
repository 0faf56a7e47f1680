"""The tools that measure: the ablation of heads, and the benchmarks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from apa_mmdet.testing.configs import read_config
from apa_mmdet.testing.training_step import TrainingStep

R18 = "configs/mini_lvis/mask_rcnn_r18_apa.py"


@pytest.fixture
def tool(run_tool, monkeypatch, tmp_path):
    """The function that runs a tool in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    return run_tool


# ---- ablate_heads.py, its training and testing replaced by files like theirs


class Launcher:
    """Stands for subprocess.run of tools/train.py and tools/test.py.

    Attributes:
        calls: The tool and the config of each call.
        dies_at: Number of the call that is interrupted, counted from 1.
    """

    def __init__(self):
        self.calls = []
        self.dies_at = None

    def __call__(self, command, stdout, stderr):
        python, _, _, tool, config, *args = command
        name = Path(tool).name
        self.calls.append((name, config))
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        cfg = Config.fromfile(config)
        assert "--resume" in args or name == "test.py"
        work = Path(args[args.index("--work-dir") + 1])
        work.mkdir(parents=True, exist_ok=True)
        cfg.work_dir = str(work)
        cfg.dump(work / "config.py")  # as the runner does
        if name == "train.py":
            (work / "last_checkpoint").write_text(str(work / "epoch_1.pth"))
        else:
            self.write_scores(cfg, work / "now/scores.json")
        return subprocess.CompletedProcess(command, 0)

    def write_scores(self, cfg, path):
        loss = cfg.model.roi_head.bbox_head.loss_cls
        score = 0.5 if loss.type == "APALoss" else 0.25
        score += 0.01 * cfg.randomness.seed
        names = ("AP", "APr", "APc", "APf")
        path.parent.mkdir(exist_ok=True)
        scores = {f"lvis/{k}_{n}": score for k in ("bbox", "segm") for n in names}
        path.write_text(json.dumps(scores))


@pytest.fixture
def ablate(tool, monkeypatch, tmp_path, mini_lvis):
    launcher = Launcher()
    monkeypatch.setattr(subprocess, "run", launcher)

    def run(*args):
        own = ["--data-root", mini_lvis, "--work-dir", tmp_path / "runs"]
        return tool("ablate_heads.py", *own, *args)

    run.launcher = launcher
    return run


TWO = ("--heads", "softmax", "apa", "--seeds", 0, 1, "--epochs", 1)


def test_ablation_prints_mean_and_spread(ablate, tmp_path):
    shown = ablate(*TWO)
    assert "\n| softmax | 2 | 25.5 ± 0.7 | " in shown
    assert "\n| apa | 2 | 50.5 ± 0.7 | " in shown
    written = json.loads((tmp_path / "runs/table.json").read_text())
    assert written["epochs"] == 1
    assert written["runs"]["apa"]["1"]["segm APr"] == pytest.approx(51)
    assert (tmp_path / "runs/table.png").stat().st_size > 1000


def test_ablation_goes_on_where_it_was_interrupted(ablate):
    ablate.launcher.dies_at = 3  # in the second training
    with pytest.raises(KeyboardInterrupt):
        ablate(*TWO)
    done = ablate.launcher.calls[:2]
    ablate(*TWO)
    again = ablate.launcher.calls[3:]
    assert not set(done) & set(again)
    assert len(again) == 6  # three heads' trainings and tests
    ablate(*TWO)
    assert ablate.launcher.calls[9:] == []


def test_ablation_keeps_runs_of_other_settings(ablate):
    ablate(*TWO)
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        ablate(*TWO[:-1], 2)


def test_ablation_changes_only_the_classifier(ablate, tmp_path):
    ablate("--seeds", 3, "--epochs", 2)
    configs = {
        folder.name: Config.fromfile(folder / "config.py").to_dict()
        for folder in (tmp_path / "runs").iterdir()
        if folder.is_dir()
    }
    assert len(configs) == 7
    heads = [cfg["model"]["roi_head"].pop("bbox_head") for cfg in configs.values()]
    assert len({json.dumps(head["loss_cls"]) for head in heads}) == 7
    assert {head["num_classes"] for head in heads} == {40}
    assert {head["fc_out_channels"] for head in heads} == {256}
    first, *others = configs.values()
    assert first["train_cfg"]["max_epochs"] == 2
    assert first["param_scheduler"][1]["T_max"] == 2
    assert first["randomness"] == {"seed": 3}
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--config", "nowhere.py"), "--config nowhere.py: no such file"),
        (("--epochs", 0), "--epochs: 0: expected at least 1"),
        (("--seeds", 1, 1), "expected different ones"),
        (("--heads", "relu"), "invalid choice: 'relu'"),
    ],
)
def test_ablation_refuses(ablate, capsys, args, message):
    with pytest.raises(SystemExit):
        ablate(*args)
    assert message in capsys.readouterr().err
    assert ablate.launcher.calls == []


# ---- the benchmarks, with little to measure


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
