"""Calls of which only one can run in a step share an activation."""

import importlib
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apa_mmdet.conversion import convert_activations


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.act, self.other = nn.SiLU(), nn.SiLU()


class DeviceCheck(Base):
    """As diffusers' GELU."""

    def gelu(self, x):
        if x.device.type == "mps":
            return F.gelu(x.float()).to(x.dtype)
        return F.gelu(x)

    def forward(self, x, flag):
        return self.fc1(self.gelu(x))


class Branches(Base):
    def forward(self, x, flag):
        if flag:
            x = self.act(self.fc1(x))
            x = self.act(self.fc2(x))
        else:
            x = self.act(x)
            x = self.fc2(self.act(self.fc1(x)))
        return x


class Expression(Base):
    def forward(self, x, flag):
        return F.silu(self.fc1(x)) if flag else F.silu(self.fc2(x))


class EarlyReturn(Base):
    def forward(self, x, flag):
        x = self.act(x)
        if flag:
            if x.ndim == 2:
                return self.act(self.fc1(x))
        return self.act(self.fc2(x))


class Chain(Base):
    def forward(self, x, flag):
        if x.ndim == 3:
            return self.act(x)
        elif flag:
            x = self.act(self.fc1(x))
        else:
            x = self.act(self.fc2(x))
        return x


class SameFlag(Base):
    def forward(self, x, flag):
        if flag is None:
            x = self.act(self.fc1(x))
        x = self.fc2(x)
        if flag is not None:
            x = self.act(x)
        return x


class Attributes(Base):
    """Two attributes and a function of the same kind."""

    def forward(self, x, flag):
        if x.ndim == 3:
            return F.silu(x)
        if flag:
            return self.act(self.fc1(x))
        return self.other(self.fc2(x))


class TrainingOnly(Base):
    def forward(self, x, flag):
        if self.training:
            return self.act(self.fc1(x))
        return self.act(self.fc2(x))


class InLayers(Base):
    """Each pass of the loop has its own, whichever branch it takes."""

    def __init__(self):
        super().__init__()
        self.fcs = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x, flag):
        for fc in self.fcs:
            if flag:
                x = self.act(fc(x))
            else:
                x = self.act(-fc(x))
        return x


class InLevels(Base):
    """What is the same for each level may be asked in a loop."""

    def forward(self, x, flag):
        out = []
        for level in (x, 2 * x):
            if level.device.type == "mps" and not torch.jit.is_scripting():
                level = self.act(level.float())
            else:
                level = self.act(level)
            out.append(self.other(level) if flag else self.other(-level))
        return self.fc1(torch.stack(out))


@pytest.mark.parametrize("flag", [True, None])
@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (DeviceCheck, ["gelu_inline"]),
        (Branches, ["act.0", "act.1"]),
        (Expression, ["silu"]),
        (EarlyReturn, ["act.0", "act.1"]),
        (Chain, ["act"]),
        (SameFlag, ["act"]),
        (Attributes, ["act"]),
        (TrainingOnly, ["act"]),
        (InLayers, ["act.0", "act.1"]),
        (InLevels, ["act", "other"]),
    ],
)
def test_they_share(cls, expected, flag):
    torch.manual_seed(0)
    model, x = cls(), torch.randn(8, 4)
    before = model(x, flag)
    report = convert_activations(model)
    assert [site.path for site in report.sites] == expected
    assert " and " in report.sites[-1].shared
    after = model(x, flag)
    torch.testing.assert_close(after, before, atol=0.03, rtol=0)
    after.sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith(("lambda_param", "kappa_param")):
            assert parameter.grad.abs() > 0, name


MATCH = """
from torch import nn


class Match(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), nn.SiLU()

    def forward(self, x, scale):
        match scale:
            case None:
                return self.act(self.fc(x))
            case [scale]:
                x = self.act(scale * x)
            case _:
                x = self.act(x)
        return self.fc(x)
"""


@pytest.mark.skipif(sys.version_info < (3, 10), reason="has no match statement")
def test_cases_share(tmp_path, monkeypatch):
    (tmp_path / "matching.py").write_text(MATCH)
    monkeypatch.syspath_prepend(tmp_path)
    report = convert_activations(importlib.import_module("matching").Match())
    assert [site.path for site in report.sites] == ["act"]


def test_another_attribute_is_neither_converted_nor_called():
    model, x = Attributes(), torch.randn(8, 4)
    report = convert_activations(model)
    assert report.left == [] and type(model.other) is nn.SiLU
    nn.init.constant_(model.act.kappa_param, 3.0)
    expected = model.act(model.fc2(x))
    assert torch.equal(model(x, False), expected)
    assert torch.equal(model(x[None], False), model.act(x[None]))


class Levels(Base):
    """A step takes both branches, on different levels."""

    def forward(self, levels):
        out = []
        for level in levels:
            if level.shape[0] > 2:
                out.append(self.act(self.fc1(level)).sum())
            else:
                out.append(self.act(self.fc2(level)).sum())
        return torch.stack(out)


class Numbered(Base):
    def forward(self, x):
        out = []
        for i in range(2):
            level = x * i
            if level.sum() > 1:
                out.append(self.act(self.fc1(level)))
            else:
                out.append(self.act(self.fc2(level)))
        return torch.stack(out)


class InTurn(Base):
    def forward(self, x, flag=True, other=None):
        if flag:
            x = self.act(self.fc1(x))
        if other is None:
            x = self.act(self.fc2(x))
        return x


class AfterInner(Base):
    """A return in a function defined here does not end this one."""

    def forward(self, x):
        def inner(x):
            if x.sum() > 1e9:
                return x
            return self.act(self.fc1(x))

        return self.act(self.fc2(inner(x)))


class OtherKinds(Base):
    def forward(self, x, flag=True):
        return F.silu(self.fc1(x)) if flag else F.gelu(self.fc2(x))


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Levels, ["act.0", "act.1"]),
        (Numbered, ["act.0", "act.1"]),
        (InTurn, ["act.0", "act.1"]),
        (AfterInner, ["act.0", "act.1"]),
        (OtherKinds, ["silu", "gelu"]),
    ],
)
def test_these_may_both_run(cls, expected):
    report = convert_activations(cls())
    assert [site.path for site in report.sites] == expected


def test_a_method_that_a_condition_excludes_has_no_sites():
    """As Transformer2DModel, whose forward chooses one of three methods."""

    class Model(Base):
        deep = False

        def forward(self, x):
            return self._deep(x) if self.deep else self._shallow(x)

        def _deep(self, x):
            return F.silu(self.fc2(F.silu(self.fc1(x))))

        def _shallow(self, x):
            return F.gelu(self.fc1(x))

    report = convert_activations(Model())
    assert [site.path for site in report.sites] == ["gelu"]
