"""The tools' errors, and testing through tools/test.py in this process."""

import os
import runpy
import sys

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from apa_mmdet.conversion import convert_activations
from apa_mmdet.engine import read_checkpoint
from apa_mmdet.engine.launch import exit_on_error
from apa_mmdet.layers import AGLU
from apa_mmdet.requirements import is_installed

MINI = "configs/mini_lvis/mask_rcnn_r18_apa.py"
SMALL = [
    "test_dataloader.dataset.indices=2",
    "test_dataloader.num_workers=0",
    "test_dataloader.persistent_workers=False",
    "model.backbone.base_channels=8",
    "model.neck.in_channels=[8,16,32,64]",
    "model.test_cfg.rpn.max_per_img=16",
]


@pytest.fixture
def run(repo, monkeypatch, tmp_path, capfd):
    """The function that runs a tool; it returns the exit code and the output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def run(tool, *args, options=()):
        argv = [str(repo / "tools" / tool), *map(str, args)]
        argv += ["--cfg-options", *options] if options else []
        monkeypatch.setattr(sys, "argv", argv)
        code = 0
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        os.environ.pop("LOCAL_RANK", None)
        return code, "".join(capfd.readouterr())

    return run


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: AGLU(num_parameters=0), "num_parameters=0"),
        (lambda: convert_activations("a"), "model is str"),  # a TypeError
    ],
)
def test_this_packages_errors_end_the_program_with_one_line(call, text, capsys):
    with pytest.raises(SystemExit) as caught, exit_on_error():
        call()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {text}") and error.count("\n") == 1


def test_a_damaged_checkpoint_ends_the_program_with_one_line(tmp_path, capsys):
    path = tmp_path / "damaged.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(SystemExit), exit_on_error():
        read_checkpoint(str(path))
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} cannot be read") and error.count("\n") == 1


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda: torch.ones(2).reshape(3), RuntimeError),  # from another package
        (lambda: Config.fromfile("nowhere.txt"), FileNotFoundError),
        (lambda: AGLU()(torch.ones(2), 1), TypeError),
    ],
)
def test_other_errors_keep_their_traceback(call, error):
    with pytest.raises(error), exit_on_error():
        call()


@pytest.mark.parametrize(
    "tool, args, text",
    [
        ("train.py", ["nowhere.py"], "error: no such config file: nowhere.py"),
        ("test.py", [MINI, "nowhere.pth"], "error: checkpoint nowhere.pth: no such"),
        ("test.py", [MINI, "x.pth", "--out", "x.json"], "--out x.json"),
    ],
)
def test_unusable_arguments_are_named(run, repo, tool, args, text):
    args = [repo / arg if arg == MINI else arg for arg in args]
    code, out = run(tool, *args)
    assert code == 2 and text in out and "Traceback" not in out


@pytest.mark.skipif(is_installed("mmpretrain"), reason="mmpretrain is installed")
def test_a_missing_mmpretrain_is_named(run, repo):
    code, out = run("train.py", repo / "configs/clothing_lt/se_r32_relu.py")
    assert code == 2 and "Traceback" not in out and "PYTHONPATH" not in out
    assert "error: apa_mmdet.classification cannot be used here: mmpretrain is" in out


@pytest.mark.parametrize("root", ["", "None"])
def test_an_empty_data_root_is_refused(run, repo, root):
    code, out = run("train.py", repo / MINI, options=[f"data_root={root}"])
    assert code == 2
    assert f"error: data_root={root or repr(root)}, expected the path" in out


@pytest.fixture(scope="module")
def softmax_checkpoint(repo, tmp_path_factory):
    """The untrained weights of the small model with a softmax classifier."""
    cfg = Config.fromfile(repo / MINI)
    cfg.model.backbone.base_channels = 8
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    cfg.model.roi_head.bbox_head.prior = None
    cfg.model.roi_head.bbox_head.loss_cls = dict(type="CrossEntropyLoss")
    path = tmp_path_factory.mktemp("softmax") / "a.pth"
    with DefaultScope.overwrite_default_scope("mmdet"):
        torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, path)
    return path


def test_another_classifier_is_refused(run, repo, mini_lvis, softmax_checkpoint):
    options = [*SMALL, f"data_root={mini_lvis}"]
    code, out = run("test.py", repo / MINI, softmax_checkpoint, options=options)
    assert code == 2 and "Load checkpoint" not in out
    assert "bbox_head.fc_cls.weight of shape (41, 256), expected (40, 256)" in out
    assert "insist with --cfg-options allow_weight_mismatch=True" in out


def test_insisting_on_weights_and_tta_with_masks(
    run, repo, mini_lvis, softmax_checkpoint
):
    options = [*SMALL, f"data_root={mini_lvis}", "allow_weight_mismatch=True"]
    args = repo / MINI, softmax_checkpoint, "--tta"
    code, out = run("test.py", *args, options=options)
    assert code == 0 and "size mismatch for roi_head.bbox_head.fc_cls.weight" in out
    assert "'segm' is left out" in out and "masks are left out" in out
    assert "lvis/bbox_AP" in out and "segm_AP" not in out
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":  # so on x86
        assert (torch.tensor([1e-39]) * 1).item() == 0
