"""The tool that converts checkpoints between the authors' names and this package's."""

import argparse
import hashlib
import os
import re
import sys

import pytest
import torch
from mmengine.logging import HistoryBuffer

from apa_mmdet.engine.weights import load_detector
from apa_mmdet.models import APAResNet, APAResNeXt
from apa_mmdet.models.published_checkpoints import (
    from_published,
    is_published,
    to_published,
)


@pytest.fixture
def tool(load_tool):
    return load_tool("model_converters/publish_model.py")


@pytest.fixture
def publish(tool, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["publish_model.py", *map(str, args)])
        tool.main()
        out = capsys.readouterr().out
        return out, re.search(r"tensors written: (.*)", out)[1]

    return run


@pytest.fixture
def small(published_state):
    return published_state(width=16)


def saved(content, path):
    torch.save(content, path)
    return path


def same(state, expected):
    return list(state) == list(expected) and all(
        torch.equal(state[key], expected[key]) for key in expected
    )


def test_detection_file_there_and_back(publish, small, tmp_path):
    state = {f"backbone.{key}": value for key, value in small.items()}
    state["rpn_head.rpn_reg.bias"] = torch.arange(3.0)
    content = {
        "state_dict": state,
        "meta": {"dataset_meta": {"CLASSES": ("a", "b")}, "cfg": "x = 1"},
        "message_hub": {"loss": HistoryBuffer([1.0], [1])},
        "optimizer": {"state": {}},
    }
    file = saved(content, tmp_path / "epoch_24.pth")
    out, path = publish(file, tmp_path / "ours.pth", "--check")
    assert "512 backbone keys are those of APAResNet-50" in out
    assert "its 4 feature maps are equal before and after" in out
    name = os.path.basename(path)
    assert re.fullmatch(r"ours-[0-9a-f]{8}\.pth", name)
    with open(path, "rb") as handle:
        assert hashlib.sha256(handle.read()).hexdigest()[:8] == name[5:13]
    loaded = torch.load(path, weights_only=True)
    assert set(loaded) == {"state_dict", "meta"}
    assert loaded["meta"] == {"dataset_meta": {"CLASSES": ("a", "b")}}
    assert same(loaded["state_dict"], from_published(state))

    out, again = publish(path, tmp_path / "theirs", "--to", "published", "--check")
    assert "feature maps are equal" in out
    assert same(torch.load(again, weights_only=True)["state_dict"], state)
    assert not [other for other in os.listdir(tmp_path) if other.endswith(".part")]


@pytest.mark.parametrize("weights", [None, "model", "model_ema"])
def test_classification_file(publish, small, classification_file, tmp_path, weights):
    site = "layer3.1.{}2.lambda_param"
    ema = {f"module.{key}": value for key, value in small.items()}
    ema |= {"n_averaged": torch.tensor(5), "module.bn1.bias": torch.ones(16)}
    small[site.format("unirect")] = torch.tensor([-0.2])
    file = saved(classification_file(small, model_ema=ema), tmp_path / "model_99.pth")
    options = [] if weights is None else ["--weights", weights]
    _, path = publish(file, tmp_path / "ours.pth", "--check", *options)
    state = torch.load(path, weights_only=True)["state_dict"]
    expected = from_published(small, classification=True)
    assert expected[site.format("act")] == torch.tensor(1e-8)
    if weights == "model_ema":
        expected["bn1.bias"] = torch.ones(16)
        expected[site.format("act")] = ema["module." + site.format("unirect")]
    assert same(state, expected)
    APAResNet(
        50,
        base_channels=16,
        plugins=[dict(cfg=dict(type="APASELayer"), position="after_conv3")],
    ).load_state_dict(state)


@pytest.mark.parametrize("gate", ["APA", "Sigmoid"])
@pytest.mark.parametrize("attention", ["APASELayer", "APACBAM", None])
@pytest.mark.parametrize("build", [APAResNet, APAResNeXt])
def test_check_builds_what_the_file_describes(
    publish, tmp_path, build, attention, gate
):
    options = dict(base_channels=16) if build is APAResNet else dict(groups=8)
    cfg = dict(type=attention, ratio=8, gate_cfg=dict(type=gate))
    if attention:
        options["plugins"] = [dict(cfg=cfg, position="after_conv3")]
    if gate == "Sigmoid":
        options["act_cfg"] = dict(type="ReLU")
    torch.manual_seed(0)
    state = build(depth=50, **options).state_dict()
    file = saved(state, tmp_path / "file.pth")
    out, path = publish(file, tmp_path / "out", "--to", "published", "--check")
    assert f"those of {build.__name__}-50" in out
    written = torch.load(path, weights_only=True)["state_dict"]
    assert same(written, to_published(state))
    assert is_published(written) == (gate == "APA" or attention == "APACBAM")


def test_check_finds_a_difference(tool, small):
    after = from_published(small)
    assert "equal" in tool.check(small, False, after)
    changed = dict(after)
    changed["layer2.0.act1.kappa_param"] = after["layer2.0.act1.kappa_param"] + 1
    with pytest.raises(ValueError, match="feature map 1 differs by up to"):
        tool.check(small, False, changed)
    changed = dict(after)
    changed["layer2.0.act9.kappa_param"] = changed.pop("layer2.0.act1.kappa_param")
    with pytest.raises(ValueError, match="layer2.0.act1.kappa_param"):
        tool.check(small, False, changed)
    with pytest.raises(ValueError, match="no ResNet of depth"):
        tool.check({"a": torch.zeros(1)}, False, {})


def test_nothing_is_read_if_the_output_cannot_be_written(
    publish, tool, monkeypatch, small, tmp_path
):
    file = saved(small, tmp_path / "file.pth")
    (tmp_path / "out-01234567.pth").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(tool, "read_checkpoint", None)
    for arguments, words in (
        (("nowhere.pth", tmp_path / "x.pth"), "input nowhere.pth: no such file"),
        ((file, tmp_path / "no/x.pth"), f"no folder {tmp_path}/no; create it"),
        ((file, tmp_path / "out.pth"), "out-01234567.pth already exists"),
        ((file, tmp_path / "folder"), "expected the name of a file"),
    ):
        with pytest.raises(SystemExit, match=words):
            publish(*arguments)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def spoil(kind, small, path):
    """Write a file that must be refused; return a pattern of the reason."""
    touched = path.parent / "touched"
    contents = {
        "number": (3, "contains a int, expected a dict"),
        "no weights": ({"epoch": 3}, "expected weights by name.*got epoch"),
        "hostile": ({**small, "x": Touch(touched)}, "references posix.system.*refused"),
        "namespace": (argparse.Namespace(_x=Touch), "refused|asks for|cannot be read"),
    }
    if kind in contents:
        torch.save(contents[kind][0], path)
        return contents[kind][1]
    torch.save(small, path)
    data = bytearray(path.read_bytes())
    if kind == "cut":
        data = data[: len(data) // 3]
    elif kind == "page":
        data = b"<html>Quota exceeded</html>"
    elif kind == "flipped":  # one bit of a convolution's weights
        start = data.index(small["layer4.0.conv2.weight"].numpy().tobytes())
        data[start + 1000] ^= 1
    path.write_bytes(data)
    return "checksum" if kind == "flipped" else "damaged, cut short or another kind"


@pytest.mark.parametrize(
    "kind",
    ["number", "no weights", "hostile", "namespace", "cut", "page", "flipped"],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(publish, small, tmp_path, kind):
    file = tmp_path / "file.pth"
    words = spoil(kind, small, file)
    with pytest.raises(SystemExit, match=f"error: {file}.*(?:{words})") as caught:
        publish(file, tmp_path / "out.pth")
    assert caught.value.__cause__ is None
    assert "weights_only" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file.pth"]


def test_missing_weights(publish, small, tmp_path):
    file = saved(small, tmp_path / "file.pth")
    with pytest.raises(SystemExit, match="weights='model_ema': the file has no such"):
        publish(file, tmp_path / "out.pth", "--weights", "model_ema")


def test_testing_needs_a_detector(small, classification_file, tmp_path):
    path = tmp_path / "file.pth"
    saved({"state_dict": {f"backbone.{k}": v for k, v in small.items()}}, path)
    assert load_detector(str(path))
    for content in (small, classification_file(small)):
        saved(content, path)
        with pytest.raises(ValueError, match="contains only a backbone.*init_cfg"):
            load_detector(str(path))
    words = spoil("hostile", small, path)
    with pytest.raises(ValueError, match=words):
        load_detector(str(path))
