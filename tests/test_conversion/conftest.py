"""What the tests of the conversion share."""

import pytest
import torch
from torch import nn

from apa_mmdet.conversion import convert_activations
from apa_mmdet.layers import AGLU

SHARP = {"lam": 1.0, "kappa": 1e4}  # ReLU to within 3e-5


@pytest.fixture
def paths():
    """The function that returns the paths of a report's sites."""

    def paths_of(report):
        return [site.path for site in report.sites]

    return paths_of


@pytest.fixture
def left():
    """The function that returns the reasons in a report, by path."""

    def reasons(report):
        return {item.path: item.reason for item in report.left}

    return reasons


@pytest.fixture
def check(paths):
    """The function that converts a model and compares it with the unconverted one."""

    def compare(model, expected, *inputs, init=SHARP, tolerance=1e-3):
        """Compare paths, outputs and keys; every site must get a gradient."""
        keys = [name for name, _ in model.named_parameters()]
        with torch.no_grad():
            before = model(*inputs)
        report = convert_activations(model, init=init)
        assert paths(report) == expected
        after = model(*inputs)
        torch.testing.assert_close(after, before, atol=tolerance, rtol=tolerance)
        after_keys = [name for name, _ in model.named_parameters()]
        own = ("lambda_param", "kappa_param")
        assert set(after_keys) - set(keys) == {
            f"{p}.{name}" for p in expected for name in own
        }
        assert [key for key in after_keys if key in keys] == keys

        for module in model.modules():  # a start at which gradients are not tiny
            if isinstance(module, AGLU):
                nn.init.constant_(module.kappa_param, 1.0)
        model(*inputs).square().sum().backward()
        for name, param in model.named_parameters():
            assert param.grad is not None, name
            assert param.grad.isfinite().all(), name
            if name.endswith(("lambda_param", "kappa_param")):
                assert param.grad.abs().sum() > 0, name
        return report

    return compare
