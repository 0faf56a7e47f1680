"""The compiled kernels against plain torch, and what happens without a compiler."""

import statistics
import subprocess
import sys
import time

import pytest
import torch

from apa_mmdet.ops import (
    affine_aglu,
    aglu,
    apa,
    cpu_kernels,
    formula,
    use_implementation,
)
from apa_mmdet.ops.implementation import chosen

N, C, H, W = 2, 40, 9, 31  # rows of 279: full blocks, and a rest
LAYOUTS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "1x1": lambda x: x[:, :, :1, :1].contiguous(),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).contiguous(),
    "one image": lambda x: x[:1],
    "slice": lambda x: x[:, :, ::2],
    "empty": lambda x: x[:0],
}


def draw(layout, params, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(N, C, H, W, generator=generator, dtype=torch.float64)
    lam = torch.rand(params, generator=generator, dtype=torch.float64) * 3 + 0.01
    if params > 1:  # some below what the kernels take logarithms of
        lam[::7] *= 1e-5
        lam[3] = 0
    kappa = torch.rand(params, generator=generator, dtype=torch.float64) * 4 - 1
    tensors = LAYOUTS[layout](x), lam, kappa
    return [tensor.to(dtype).double() for tensor in tensors]


def run(function, tensors, dtype):
    """Return the value, and all gradients for a fixed weight of each element."""
    own = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    y = function(*own)
    weight = torch.linspace(-1, 2, max(y.numel(), 1))[: y.numel()]
    grads = torch.autograd.grad((y.float().flatten() * weight).sum(), own)
    return y, *grads


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("params", [1, C])
@pytest.mark.parametrize("function", [aglu, apa])
def test_equals_plain_torch(layout, params, function):
    tensors = draw(layout, params)
    with use_implementation("compiled"):
        found = run(function, tensors, torch.float32)
    plain = function(tensors[0].float(), *draw("NCHW", 1)[1:])
    assert found[0].stride() == plain.stride()
    expected = run(function, tensors, torch.float64)
    for ours, true in zip(found, expected):
        scale = true.abs().max().item() if true.numel() else 0
        torch.testing.assert_close(ours.double(), true, rtol=2e-6, atol=2e-6 * scale)


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("params", [1, C])
@pytest.mark.parametrize("function", [aglu, apa])
def test_bfloat16_is_rounded_once(layout, params, function):
    tensors = draw(layout, params, torch.bfloat16)
    with use_implementation("compiled"):
        value, *grads = run(function, tensors, torch.bfloat16)
    true = run(function, tensors, torch.float64)
    assert value.dtype == torch.bfloat16
    assert (value == true[0].bfloat16()).float().mean() > 0.99
    for grad, exact in zip(grads, true[1:]):
        torch.testing.assert_close(
            grad.double(), exact, rtol=0.02, atol=0.01 * exact.abs().max().item()
        )


@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "1x1", "one image"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("residual", ["none", "plain", "scaled"])
@pytest.mark.parametrize("params", [1, C])
def test_affine_equals_plain_torch(layout, per_image, residual, params):
    x, lam, kappa = draw(layout, params)
    generator = torch.Generator().manual_seed(1)
    small = (len(x), C) if per_image else (C,)
    scale, shift = torch.randn(2, *small, generator=generator, dtype=torch.float64)
    tensors = [x, scale, shift, lam, kappa]
    if residual != "none":
        tensors.append(draw(layout, params, seed=2)[0])
    if residual == "scaled":
        tensors += torch.randn(2, C, generator=generator, dtype=torch.float64)
    with use_implementation("compiled"):
        found = run(affine_aglu, tensors, torch.float32)
    expected = run(affine_aglu, tensors, torch.float64)
    for ours, true in zip(found, expected):
        torch.testing.assert_close(
            ours.double(), true, rtol=5e-6, atol=5e-6 * true.abs().max().item()
        )


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("params", [1, C])
def test_threads_change_no_bit(layout, params):
    x, lam, kappa = draw(layout, params)
    x = x.repeat(1, 1, 8, 8)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            with use_implementation("compiled"):
                results.append(run(aglu, [x, lam, kappa], torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("with_residual", [False, True])
def test_short_rows_are_as_quick_as_long_ones(with_residual):
    # Rows of 200 are shorter than a block and have a loop of their own, which took four
    # times as long while the compiler left it scalar.
    def seconds(inner):
        x, residual, grad = torch.randn(3, 1, 204800 // inner, inner, 1)
        small = torch.ones(x.shape[1])
        terms = small, small, residual if with_residual else None
        one = torch.ones(1)
        start = time.perf_counter()
        cpu_kernels.backward("aglu", x, one, one, grad, 1, True, *terms)
        return time.perf_counter() - start

    pairs = [(seconds(200), seconds(256)) for _ in range(17)]
    assert statistics.median(short / long for short, long in pairs[2:]) < 2


def test_extreme_inputs_stay_finite():
    sizes = torch.tensor([0.0, 1e-30, 1.0, 60.0, 90.0, 1e4, 1e15, 3e38])
    x = torch.cat([sizes, -sizes])
    for lam in (-1.0, 0.0, 1e-30, 9.9e-5, 1e-4, 1.0, 1e4):
        for kappa in (-50.0, 0.0, 1.0, 50.0):
            own = [x, torch.tensor([lam]), torch.tensor([kappa])]
            own = [tensor.clone().requires_grad_() for tensor in own]
            with use_implementation("compiled"):
                y = aglu(*own)
                y.backward(torch.full_like(y, 1e-20))
            assert y.isfinite().all() and own[0].grad.isfinite().all(), (lam, kappa)
            exact = formula.aglu(*(tensor.detach().double() for tensor in own))
            torch.testing.assert_close(y.double(), exact, rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("params", [1, C])
@pytest.mark.parametrize("lam", [-1.0, 0.0, 1e-30, 1e-7, 9.99e-5])
@pytest.mark.parametrize("function", [aglu, apa])
def test_small_lambdas_equal_plain_torch(layout, params, lam, function):
    x, _, kappa = draw(layout, params)
    tensors = [x, torch.full((params,), lam, dtype=torch.float64), kappa]
    expected = run(function, tensors, torch.float64)
    with use_implementation("compiled"):
        assert chosen(x.float(), *(t.float() for t in tensors[1:])) == "compiled"
        found = run(function, tensors, torch.float32)
    for ours, true in zip(found, expected):
        torch.testing.assert_close(
            ours.double(), true, rtol=4e-6, atol=4e-6 * true.abs().max().item()
        )


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("function", [aglu, apa])
def test_not_a_number_is_not_hidden(lam, function):
    x = torch.tensor([1.0, float("nan"), -1.0])
    with use_implementation("compiled"):
        y, *grads = run(function, [x, torch.tensor([lam]), torch.ones(1)], x.dtype)
    assert y.isnan().tolist() == grads[0].isnan().tolist() == [False, True, False]
    assert grads[1].isnan() and grads[2].isnan()


def test_what_the_kernels_do_not_take_goes_another_way():
    x, one = torch.randn(4, 4), torch.ones(1)
    taken = dict(x=x, lam=one, kappa=one)
    assert chosen(**taken) == "compiled"
    for other in (
        dict(x=x.double()),
        dict(x=x.half()),
        dict(x=torch.randn(8, 8)[::2, ::2]),
        dict(lam=torch.tensor([float("nan")])),
        dict(lam=torch.tensor([1.0, 1.0, 2e4, 1.0])),
        dict(kappa=torch.tensor([float("inf")])),
        dict(lam=one.double()),
    ):
        assert chosen(**{**taken, **other}) == "plain", other


def test_a_backward_pass_is_that_of_its_forward_pass(monkeypatch):
    x = torch.randn(4, 4, requires_grad=True)
    with use_implementation("plain"):
        y = aglu(x, torch.ones(1), torch.ones(1))
    monkeypatch.setattr(cpu_kernels, "backward", None)
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_choosing(monkeypatch):
    x, one = torch.randn(4, 4), torch.ones(1)
    with pytest.raises(ValueError, match="name='fast', expected one of auto, plain"):
        with use_implementation("fast"):
            pass
    with use_implementation("plain"):
        assert chosen(x, one, one) == "plain"
        with use_implementation("auto"):
            assert chosen(x, one, one) == "compiled"
        assert chosen(x, one, one) == "plain"
    assert chosen(x, one, one) == "compiled"
    monkeypatch.setenv("APA_MMDET_IMPL", "plain")
    assert chosen(x, one, one) == "plain"
    monkeypatch.setenv("APA_MMDET_IMPL", "fast")
    with pytest.raises(ValueError, match="APA_MMDET_IMPL='fast'"):
        aglu(x, one, one)
    with use_implementation("compiled"):
        with pytest.raises(RuntimeError, match="x is torch.float64 on cpu, expected"):
            aglu(x.double(), one, one)


PROGRAM = """
import warnings, torch
from apa_mmdet.ops import aglu
from apa_mmdet.ops.implementation import chosen
x, one = torch.randn(2, 3), torch.ones(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        y = aglu(x, one, one)
torch.testing.assert_close(y, torch.nn.functional.silu(x))
print(len(caught), chosen(x, one, one), *(str(w.message) for w in caught))
"""


def program(tmp_path, monkeypatch, **environment):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True
    )


def test_it_is_compiled_once_and_kept(tmp_path, monkeypatch):
    for _ in range(2):
        result = program(tmp_path, monkeypatch)
        assert result.stdout.split()[:2] == ["0", "compiled"], result
        kept = list((tmp_path / "apa_mmdet").iterdir())
        assert len(kept) == 1
        if _ == 0:
            first = kept[0].stat().st_mtime_ns
    assert kept[0].stat().st_mtime_ns == first


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("/nowhere/c++", "no C++ compiler found (CXX='/nowhere/c++'); install one"),
        ("false", "false could not compile apa_mmdet's CPU kernels"),
    ],
)
def test_without_a_compiler(tmp_path, monkeypatch, compiler, message):
    result = program(tmp_path, monkeypatch, CXX=compiler)
    assert result.stdout.split()[:2] == ["1", "plain"], result  # said once
    assert message in result.stdout
    result = program(tmp_path, monkeypatch, CXX=compiler, APA_MMDET_IMPL="compiled")
    assert result.returncode and message in result.stderr


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "apa_mmdet").write_text("a file where the folder should be")
    result = program(tmp_path, monkeypatch)
    assert result.stdout.split()[:2] == ["1", "plain"], result
    assert "set XDG_CACHE_HOME to a folder that can be written" in result.stdout
