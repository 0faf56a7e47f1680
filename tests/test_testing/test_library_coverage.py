"""The checks of other libraries' models, on a model of our own, and their tool."""

import importlib.util
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apa_mmdet.conversion import convert_activations
from apa_mmdet.testing import library_coverage
from apa_mmdet.testing.library_coverage import check_model
from apa_mmdet.testing.library_models import MODELS, LibraryModel


class Net(nn.Module):
    approximate = "tanh"

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.relu, self.gate = nn.ReLU(), nn.Sigmoid()
        self.fc, self.aside = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.SiLU())
        nn.init.zeros_(self.norm.weight)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x))).mean((2, 3))
        if x.numel() > 1000:
            x = self.aside(x)
        x = F.gelu(self.fc(x), approximate=self.approximate)
        return {"gated": x * self.gate(x), "number": 3}


class Own(LibraryModel):
    def build(self):
        return Net().eval()


OWN = Own("own", "Net", {}, dict(x=(2, 3, 8, 8)))


def test_a_complete_conversion():
    row = check_model(OWN)
    assert row.failures == []
    assert [site.was for site in row.report.sites] == ["ReLU", "GELU, inline", "SiLU"]
    assert [left.was for left in row.report.left] == ["Sigmoid"]
    assert 1e-4 < row.difference < 0.1  # the norm starts at zero, and is filled
    assert row.idle == ["aside.1"]


def test_what_is_wrong_is_named(monkeypatch):
    def convert(model, **options):
        report = convert_activations(model, **options)
        model.extra = nn.Linear(1, 1, bias=False)
        model.get_submodule("gelu").lambda_param.requires_grad_(False)
        forward = model.forward
        model.forward = lambda x: {**forward(x), "gated": -forward(x)["gated"]}
        return report

    monkeypatch.setattr(library_coverage, "convert_activations", convert)
    assert check_model(OWN).failures == [
        "extra.weight is new",
        "rewired, the output output.gated is different",
        "gelu has no gradient",
    ]
    monkeypatch.setattr(library_coverage, "convert_activations", lambda *_, **__: 1 / 0)
    assert check_model(OWN).failures[0].startswith("ZeroDivisionError: division by")


def test_models_have_names_of_their_own():
    counts = Counter((model.library, model.title) for model in MODELS)
    assert max(counts.values()) == 1


def test_arguments():
    inputs = dict(input_ids=(2, 8), x=(2, 3), label=[4], scale=2.0, y=lambda: "y")
    model = LibraryModel("own", "Net", {}, inputs, training=dict(target=1))
    arguments = model.arguments()
    assert arguments["input_ids"].shape == (2, 8)
    assert 3 <= arguments["input_ids"].min() and arguments["input_ids"].max() < 50
    assert arguments["x"].shape == (2, 3) and arguments["x"].is_floating_point()
    assert torch.equal(arguments["label"], torch.tensor([4]))
    assert arguments["scale"] == 2.0 and arguments["y"] == "y"
    assert "target" not in arguments and "target" in model.arguments(training=True)


def test_the_tool_writes_a_row_for_each_model(run_tool, tmp_path, capsys):
    pytest.importorskip("transformers")
    page = tmp_path / "page.md"
    chosen = ("--libraries", "transformers", "--models", "Llama", "RegNet")
    with pytest.raises(SystemExit) as end:
        run_tool("library_coverage.py", *chosen, "--out", page)
    assert end.value.code == 0
    assert "transformers LlamaForCausalLM: 2 SiLU, 0 left" in capsys.readouterr().out
    written = page.read_text(encoding="utf-8")
    assert "\n| LlamaForCausalLM | 2 SiLU |  | < 1e-5 | all |\n" in written
    assert "\n| RegNetForImageClassification | 9 ReLU | 2 a | 0.00" in written
    assert "\n- a: a gate" in written


def test_the_tool_names_what_is_missing(run_tool, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for arguments, message in (
        (["--models", "nowhere"], "--models nowhere: no model"),
        (["--libraries", "timm"], "timm is not installed: pip install timm"),
    ):
        with pytest.raises(SystemExit) as end:
            run_tool("library_coverage.py", *arguments)
        assert end.value.code == 2
        assert message in capsys.readouterr().err
