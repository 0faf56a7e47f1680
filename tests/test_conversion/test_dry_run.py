"""A forward pass shows where the report is wrong, and leaves no trace."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apa_mmdet.conversion import convert_activations


class Stateful(nn.Module):
    """Batch statistics, dropout, counters and caches."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.act, self.drop = nn.SiLU(), nn.Dropout(0.5)
        self.steps, self.history, self.cache = 0, [1], {"x": None}
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x, scale=1.0):
        self.steps += 1
        self.history.append(random.random() + np.random.rand())
        self.cache["x"] = self.last = x
        self.mean = x.mean(0)
        self.eval()
        return self.drop(self.act(self.norm(self.fc(x)))) * scale


@pytest.mark.parametrize(
    "inputs",
    [torch.randn(8, 4), (torch.randn(8, 4), 2.0), {"x": torch.randn(8, 4)}],
)
def test_it_agrees_and_leaves_no_trace(inputs):
    model = Stateful()
    other = copy.deepcopy(model)
    reports = []
    for each, given in ((other, None), (model, inputs)):
        torch.manual_seed(0)  # AGLU draws its start
        states = random.getstate(), np.random.get_state()[1].tolist()
        reports.append(convert_activations(each, example_inputs=given))
        assert (random.getstate(), np.random.get_state()[1].tolist()) == states
        reports.append(torch.get_rng_state())
    expected, as_it_was, report, state = reports
    assert torch.equal(state, as_it_was)

    assert report.disagreements == []
    assert str(report).endswith("A forward pass: agrees with this report.")
    assert (report.sites, report.left) == (expected.sites, expected.left)
    assert expected.disagreements is None and "forward pass" not in str(expected)
    for (name, value), (_, as_it_was) in zip(
        model.state_dict().items(), other.state_dict().items()
    ):
        assert torch.equal(value, as_it_was), name
    assert model.training and model.norm.training and not model.act._forward_hooks
    assert (model.steps, model.history, model.cache) == (0, [1], {"x": None})
    assert not hasattr(model, "last") and model.mean is model._buffers["mean"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.hidden, self.unused, self.mask = nn.SiLU(), nn.SiLU(), nn.SiLU()

    def forward(self, x, mask=None):
        if mask is not None:
            x = self.mask(x)
        # A call that no source shows.
        return eval("self.hidden")(self.fc(x)) + (lambda: F.gelu)()(x)


def test_it_names_disagreements():
    model, x = Model(), torch.randn(8, 4)
    expected = model(x)
    report = convert_activations(model, example_inputs=x)
    assert [site.path for site in report.sites] == ["mask"]
    assert report.disagreements == [
        "mask became learnable but did not run, so that a step like this one gives its "
        "parameters no gradient",
        "hidden stays fixed: it runs, though no call of it was found",
        "gelu in forward() is neither converted nor left",
    ]
    assert {item.path: item.reason for item in report.left} == {
        "hidden": "it runs, though no call of it was found",
        "unused": "never called",
    }
    assert "A forward pass: mask became learnable but" in str(report)
    assert torch.equal(model(x), expected)
    inputs = {"x": x, "mask": x}
    report = convert_activations(Model(), example_inputs=inputs)
    assert len(report.disagreements) == 2


def test_inputs_that_do_not_fit_change_nothing():
    model = Model()
    with pytest.raises(ValueError, match="Tensor with which Model does not") as caught:
        convert_activations(model, example_inputs=torch.randn(8, 5))
    assert "\n" not in str(caught.value) and "give a tuple" in str(caught.value)
    assert type(model.mask) is nn.SiLU and not hasattr(model, "conversion_report")
    assert convert_activations(model).sites


def test_sites_that_share_a_call_all_count():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.fcs = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            for i, fc in enumerate(self.fcs):
                x = F.relu(fc(x)) if i < int(x.shape[0]) else fc(x)
            return x

    report = convert_activations(Loop(), example_inputs=torch.randn(2, 4))
    assert [text.split()[0] for text in report.disagreements] == ["relu.2"]
