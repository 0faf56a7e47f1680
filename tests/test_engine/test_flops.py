"""Operation counts of the activations in MMEngine's complexity analysis."""

import sys

import pytest
import torch
from mmengine.analysis import (
    ActivationAnalyzer,
    FlopAnalyzer,
    complexity_analysis,
    get_model_complexity_info,
)
from torch import nn

from apa_mmdet import ops
from apa_mmdet.engine import flops
from apa_mmdet.layers import AGLU, APA

KIND = "apa_mmdet::aglu"


class Call(nn.Module):
    def __init__(self, name, num_parameters=1):
        super().__init__()
        self.function = getattr(ops, name)
        self.lam = nn.Parameter(torch.ones(num_parameters))
        self.kappa = nn.Parameter(torch.ones(num_parameters))

    def forward(self, x):
        return self.function(x, self.lam, self.kappa)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_parameters", [1, 5])
@pytest.mark.parametrize("name, ops_each", [("aglu", 7), ("apa", 6), ("log_apa", 5)])
def test_each_function(name, ops_each, num_parameters, dtype):
    x = torch.randn(2, 5, 3, 4, dtype=dtype)
    analyzer = FlopAnalyzer(Call(name, num_parameters), (x,))
    assert analyzer.by_operator() == {name: ops_each * 2 * 5 * 3 * 4}
    assert not analyzer.unsupported_ops()


def test_a_network(monkeypatch):
    """A 3x3 convolution, AGLU and an APA gate, with every count by hand."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.act = AGLU()
            self.fc = nn.Linear(4, 4)
            self.gate = APA(4)

        def forward(self, x):
            x = self.act(self.conv(x))
            return self.gate(self.fc(x.flatten(2).transpose(1, 2)))

    conv, act = 6 * 8 * 4 * 3 * 9, 6 * 8 * 4 * 7
    linear, gate = 6 * 8 * 4 * 4, 6 * 8 * 4 * 6
    warnings = []
    monkeypatch.setattr(
        "mmengine.analysis.jit_analysis.print_log",
        lambda message, *_: warnings.append(message),
    )
    model = Net().eval()
    info = get_model_complexity_info(model, (3, 6, 8), show_table=False)
    assert info["flops"] == conv + act + linear + gate
    assert info["activations"] == 2 * 6 * 8 * 4
    assert not warnings

    analyzer = FlopAnalyzer(model, (torch.randn(1, 3, 6, 8),))
    assert analyzer.by_module() == {
        "": conv + act + linear + gate,
        "conv": conv,
        "act": act,
        "fc": linear,
        "gate": gate,
    }


def test_a_shared_module_counts_at_every_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = AGLU()

        def forward(self, x):
            return self.act(self.act(x))

    analyzer = FlopAnalyzer(Twice(), (torch.randn(10),))
    assert analyzer.by_operator() == {"aglu": 2 * 10 * 7}


def test_without_the_entries_they_are_unsupported(monkeypatch):
    """It shows what the registration does, and that it names the right node."""
    monkeypatch.delitem(complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS, KIND)
    monkeypatch.delitem(complexity_analysis._DEFAULT_SUPPORTED_ACT_OPS, KIND)
    for analyzer in (FlopAnalyzer, ActivationAnalyzer):
        analysis = analyzer(AGLU(), (torch.randn(2, 3),))
        assert analysis.total() == 0
        assert analysis.unsupported_ops() == {KIND: 1}
    flops.register_operators()
    for analyzer in (FlopAnalyzer, ActivationAnalyzer):
        analysis = analyzer(AGLU(), (torch.randn(2, 3),))
        assert analysis.total() == (42 if analyzer is FlopAnalyzer else 0)
        assert not analysis.unsupported_ops()


def test_does_nothing_if_mmengine_has_no_table(monkeypatch):
    monkeypatch.delattr(complexity_analysis, "_DEFAULT_SUPPORTED_FLOP_OPS")
    monkeypatch.delattr(complexity_analysis, "_DEFAULT_SUPPORTED_ACT_OPS")
    flops.register_operators()
    monkeypatch.setitem(sys.modules, "mmengine.analysis", None)
    flops.register_operators()


def test_another_packages_function_is_not_counted_as_ours():
    class _Activation(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, name):
            return x * 2

    class Net(nn.Module):
        def forward(self, x):
            return _Activation.apply(x, "aglu")

    analyzer = FlopAnalyzer(Net(), (torch.randn(2, 3),))
    assert analyzer.total() == 0
    assert analyzer.unsupported_ops() == {"prim::PythonOp._Activation": 1}
