"""The cross-entropy's kernels against plain torch in float64, on every device.

As in test_gpu_activation.py, the ordinary suite runs the GPU's kernels in Triton's
interpreter, in a process of its own.
"""

import os
import re
import subprocess
import sys

import pytest
import torch

from apa_mmdet.ops import apa_cross_entropy, use_implementation
from apa_mmdet.testing import gpu_stand_in

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
on_a_gpu = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=on_a_gpu)]
SLOPE = 22026.0


@pytest.fixture(scope="module", autouse=True)
def launched():
    if INTERPRETED:
        with gpu_stand_in.connected(gpu_stand_in.Interpreter()):
            yield
    else:
        yield


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def arguments(rows, classes, lam, params, device, dtype=torch.float32):
    own = {
        "zero": torch.zeros(params),
        "below zero": -draw(params, seed=1).abs(),
        "tiny": 10 ** (2 * draw(params, seed=1).float() - 6),
        "usual": draw(params, seed=1).exp(),
        "large": 1e3 * draw(params, seed=1).exp(),
    }[lam]
    tensors = 4 * draw(rows, classes), own, draw(params, seed=2).exp()
    kinds = dtype, torch.float32, torch.float32
    tensors = [t.to(device, kind) for t, kind in zip(tensors, kinds)]
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(-1, classes + 1, (rows,), generator=generator)
    return tensors, labels.to(device)


def run(implementation, tensors, labels, **options):
    own = [tensor.detach().requires_grad_() for tensor in tensors]
    torch.manual_seed(7)  # of the drop rule
    with use_implementation(implementation):
        y = apa_cross_entropy(own[0], labels, own[1], own[2], **options)
    weight = 1 + torch.arange(y.numel(), device=y.device).reshape(y.shape) % 7
    return y, *torch.autograd.grad(y, own, weight.to(y.dtype))


def compare(tensors, labels, **options):
    found = run("native", tensors, labels, **options)
    expected = run("plain", [tensor.double() for tensor in tensors], labels, **options)
    for one, true in zip(found, expected):
        tolerance = 2e-5 if one.dtype == torch.float32 else 1e-2
        scale = true.abs().max().item() if true.numel() else 0
        torch.testing.assert_close(
            one.double(), true, rtol=tolerance, atol=1e-6 * scale
        )
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lam", ["zero", "below zero", "tiny", "usual", "large"])
@pytest.mark.parametrize("params", [1, 150])
@pytest.mark.parametrize("max_slope", [None, SLOPE])
def test_equals_plain_torch(device, lam, params, max_slope):
    tensors, labels = arguments(20, 150, lam, params, device)
    for reduction in ("none", "sum"):
        compare(tensors, labels, max_slope=max_slope, reduction=reduction)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(20, 1), (1, 150), (20, 150), (1, 1)])
def test_weights_of_every_shape(device, shape):
    tensors, labels = arguments(20, 150, "usual", 1, device)
    weight = draw(*shape, seed=4).abs().to(device, torch.float32)
    compare(tensors, labels, weight=weight)
    compare(tensors, labels, weight=weight.half().float(), reduction="sum")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("share", ["none", "some", "all"])
def test_drops_the_same_negatives_as_plain_torch(device, reduction, share):
    tensors, labels = arguments(70, 50, "usual", 50, device)
    rare = draw(50, seed=5).to(device) < 0
    if share == "none":
        labels.fill_(50)
    elif share == "all":
        labels = torch.where(rare[labels.clamp(0, 49)], labels, 50)
    value, *_ = compare(tensors, labels, rare=rare, reduction=reduction)
    if reduction == "none":
        background = (labels < 0) | (labels >= 50)
        shown = background[:, None] & rare & (tensors[0] > -1)  # else it may be 0
        kept = (value[shown] > 0).sum().item() / len(value[shown])
        assert {"none": kept == 0, "some": 0.2 < kept < 0.8, "all": kept == 1}[share]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(device, dtype):
    tensors, labels = arguments(20, 150, "usual", 150, device, dtype)
    value, grad, *_ = compare(tensors, labels, max_slope=SLOPE)
    assert value.dtype == torch.float32 and grad.dtype == dtype


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_every_number_of_rows(device, rows):
    tensors, labels = arguments(rows, 13, "usual", 13, device)
    for reduction in ("none", "sum"):
        compare(tensors, labels, reduction=reduction)


@pytest.mark.parametrize("device", DEVICES)
def test_logits_of_any_strides(device):
    tensors, labels = arguments(20, 150, "usual", 1, device)
    turned = tensors[0].t().contiguous().t()
    for one, other in zip(
        run("native", [turned, *tensors[1:]], labels), run("native", tensors, labels)
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lam", [0.0, 1e-5, 0.5, 1.0, 1e3])
def test_extreme_logits_stay_finite(device, lam):
    sizes = torch.tensor([0.0, 1e-30, 1.0, 30.0, 60.0, 90.0, 1e4, 1e15])
    row = torch.cat([sizes, -sizes]).to(device)
    logits = row.repeat(len(row) + 1, 1)
    labels = torch.arange(len(row) + 1, device=device)
    own = [torch.tensor([value], device=device) for value in (lam, 1.0)]
    for found in run("native", [logits, *own], labels, max_slope=SLOPE):
        assert found.isfinite().all()
    compare([logits.clamp(-80, 80), *own], labels, max_slope=SLOPE)


@pytest.mark.parametrize("device", DEVICES)
def test_not_a_number_is_not_hidden(device):
    nan, one = (torch.tensor([value], device=device) for value in (float("nan"), 1.0))
    labels = torch.tensor([0, 1], device=device)
    logits = one.repeat(2, 1)
    for tensors in ([logits * nan, one, one], [logits, nan, one], [logits, one, nan]):
        assert run("native", tensors, labels)[0].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
def test_two_runs_are_bitwise_equal(device):
    tensors, labels = arguments(40, 150, "usual", 150, device)
    rare = draw(150, seed=5).to(device) < 0
    first, second = (
        run("native", tensors, labels, rare=rare, reduction="sum") for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second))


@pytest.mark.parametrize("device", DEVICES)
def test_second_derivatives_are_refused(device):
    tensors, labels = arguments(4, 5, "usual", 1, device)
    own = [tensor.requires_grad_() for tensor in tensors]
    with use_implementation("native"):
        loss = apa_cross_entropy(own[0], labels, *own[1:], reduction="sum")
    (grad,) = torch.autograd.grad(loss, own[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.skipif(INTERPRETED, reason="torch cannot trace what is interpreted")
@pytest.mark.parametrize("device", DEVICES)
def test_torch_compile_keeps_one_graph(device):
    rare = draw(50, seed=5).to(device) < 0

    def function(logits, labels, lam, kappa):
        own = apa_cross_entropy(
            2 * logits, labels, lam, kappa, max_slope=SLOPE, rare=rare, reduction="sum"
        )
        return own + 1

    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for rows in (8, 20):
        (logits, lam, kappa), labels = arguments(rows, 50, "usual", 1, device)
        results = []
        for call in (compiled, function):
            torch.manual_seed(1)
            own = [tensor.detach().requires_grad_() for tensor in (logits, lam, kappa)]
            loss = call(own[0], labels, *own[1:])
            results.append([loss, *torch.autograd.grad(loss, own)])
        for one, other in zip(*results):
            torch.testing.assert_close(one, other)


@on_a_gpu
def test_waits_for_nothing_and_runs_under_a_cuda_graph():
    tensors, labels = arguments(100, 150, "usual", 150, "cuda")
    labels[::2] = 150  # negatives are drawn for the background
    rare = draw(150, seed=5).cuda() < 0
    own = [tensor.requires_grad_() for tensor in tensors]

    def step():
        options = dict(max_slope=SLOPE, rare=rare, reduction="sum")
        loss = apa_cross_entropy(own[0], labels, *own[1:], **options)
        return loss, *torch.autograd.grad(loss, own)

    with torch.cuda.stream(torch.cuda.Stream()):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    first = [tensor.clone() for tensor in captured]
    graph.replay()
    assert first[0] != captured[0]  # each replay draws anew
    assert all(tensor.isfinite().all() for tensor in captured)


@on_a_gpu
def test_little_memory():
    logits = torch.randn(1024, 1203, device="cuda", requires_grad=True)
    labels = torch.randint(0, 1204, (1024,), device="cuda")
    lam, kappa = (torch.ones(1203, device="cuda", requires_grad=True) for _ in "ab")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = apa_cross_entropy(logits, labels, lam, kappa, reduction="sum")
        torch.autograd.grad(loss, (logits, lam, kappa))
        peak = torch.cuda.max_memory_allocated() - before
    assert peak < 10 << 20


@pytest.mark.skipif(INTERPRETED, reason="it is the interpreter's process")
def test_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 40
