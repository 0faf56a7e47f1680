"""Bytes saved for backward, time, launches on a GPU, and the tables of benchmarks."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apa_mmdet.layers import AGLU
from apa_mmdet.ops import norm_aglu
from apa_mmdet.testing.benchmark import bar_charts, table
from apa_mmdet.testing.launches import count_launches
from apa_mmdet.testing.memory import peak_bytes, saved_bytes
from apa_mmdet.testing.timing import (
    device_seconds,
    gpu_work,
    machine,
    median_ratio,
    wall_and_host_seconds,
)


def test_saved_bytes_count_each_storage_once_without_the_model():
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU())
    x = torch.randn(4, 8)
    # Input, input of the norm, its mean and deviation, and ReLU's output.
    expected = 4 * (x.numel() + 4 * 16 + 2 * 16 + 4 * 16)
    assert saved_bytes(lambda: model(x), model) == expected
    norm = 4 * (16 + 2 * 16)  # its weight and running statistics
    assert saved_bytes(lambda: model(x)) == expected + norm


def test_saved_bytes_of_views_are_those_of_the_whole_storage():
    x = torch.randn(2, 8, requires_grad=True)
    assert saved_bytes(lambda: x[0] * x[1]) == 4 * x.numel()
    assert saved_bytes(lambda: x[0] * x[1], [x]) == 0
    # Memory that was freed and used again counts again.
    assert saved_bytes(lambda: F.silu(x * 2).exp()) == 2 * 4 * x.numel()


def test_times_on_a_cpu():
    calls = []
    wall, host = wall_and_host_seconds(lambda: calls.append(0), "cpu", 3)
    assert len(calls) == 3
    assert wall >= host > 0
    assert device_seconds(lambda: calls.append(0), "cpu", 2) > 0
    assert gpu_work(lambda: calls.append(0), "cpu") == (None, None)
    assert peak_bytes(lambda: calls.append(0), "cpu") is None
    assert "gpu" not in machine("cpu")
    assert median_ratio([2, 9, 8], [1, 3, 2]) == 3


def test_launches_counted_on_a_cpu():
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    assert count_launches(lambda: x.transpose(0, 1)[0].detach()) == 0
    # ReLU and sum, and the gradient of each: `sum` hands on a view.
    assert count_launches(lambda: F.relu(x).sum()) == 2
    assert count_launches(lambda: F.relu(x).sum().backward()) == 4
    # A CPU takes three operations for dropout, a GPU one; backward one on both.
    assert count_launches(lambda: F.dropout(x)) == 1
    assert count_launches(lambda: F.dropout(x, training=False)) == 0
    y = x.detach()
    assert count_launches(lambda: torch.autograd.grad(F.dropout(x), x, y)) == 2


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_launches_of_native_operators_counted_on_a_cpu():
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    norm, activation = nn.BatchNorm2d(8).eval(), AGLU()

    def call():
        statistics = norm.running_mean, norm.running_var, norm.eps
        parameters = activation.lambda_param, activation.kappa_param
        return norm_aglu(x, norm.weight, norm.bias, *statistics, *parameters)

    assert count_launches(call) == 1
    gradient = torch.ones_like(x)
    # Backward: one pass over the map, and one reduction of all parameters' sums.
    assert count_launches(lambda: call().backward(gradient)) == 3


@pytest.mark.gpu
def test_launches_time_and_memory_on_a_gpu():
    x = torch.randn(2**20, device="cuda")
    chain = torch.nn.Sequential(*[nn.SiLU() for _ in range(5)])
    launches, busy = gpu_work(lambda: chain(x), "cuda")
    assert launches == 5
    wall, host = wall_and_host_seconds(lambda: chain(x), "cuda", 3)
    assert wall >= host > 0 and busy > 0
    assert device_seconds(lambda: chain(x), "cuda", 3) > 0
    assert peak_bytes(lambda: x + 1, "cuda") == 4 * 2**20
    assert {"gpu", "driver", "torch", "triton"} <= set(machine("cuda"))


def test_a_table_shows_missing_figures_as_dashes():
    rows = [dict(name="a", ms=1.25, launches=None), dict(name="bc", ms=10, launches=7)]
    columns = {"ms": "{ms:.1f}", "launches": "{launches:d}"}
    assert table("what", "name", columns, rows).splitlines() == [
        "what  ms    launches",
        "a     1.2   -",
        "bc    10.0  7",
    ]


@pytest.mark.parametrize("ratios", [False, True])
def test_bar_charts(tmp_path, ratios):
    one = {"a": [1.0], "b": [2.0, 3.0]}
    panels = {"one": one, "two": {"a": [0.5]}, "three": {"c": [3.0]}}
    path = tmp_path / "bars.png"
    assert bar_charts(panels, path, ratios=ratios) == "bars.png"
    assert path.read_bytes().startswith(b"\x89PNG")
