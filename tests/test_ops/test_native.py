"""The native operators on a CPU against plain torch, and how torch sees them."""

import math
import statistics
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from apa_mmdet.layers import AGLU
from apa_mmdet.ops import (
    aglu,
    apa,
    extension,
    formula,
    implementation,
    norm_aglu,
    use_implementation,
)
from apa_mmdet.ops.implementation import is_native

N, C, H, W = 2, 40, 9, 31  # rows of 279: full blocks, and a rest
LAYOUTS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "1x1": lambda x: x[:, :, :1, :1].contiguous(),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).contiguous(),
    "one image": lambda x: x[:1],
    "channels": lambda x: x[0, :, 0, 0].contiguous(),
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
    with use_implementation("native"):
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
    with use_implementation("native"):
        value, *grads = run(function, tensors, torch.bfloat16)
    true = run(function, tensors, torch.float64)
    assert value.dtype == torch.bfloat16
    assert (value == true[0].bfloat16()).float().mean() > 0.99
    for grad, exact in zip(grads, true[1:]):
        torch.testing.assert_close(
            grad.double(), exact, rtol=0.02, atol=0.01 * exact.abs().max().item()
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
            with use_implementation("native"):
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
        norm = small, small, small, small, 1e-5
        one = torch.ones(1, requires_grad=True)
        terms = None, residual if with_residual else None
        y = norm_aglu(x.requires_grad_(), *norm, one, one, *terms)
        start = time.perf_counter()
        y.backward(grad)
        return time.perf_counter() - start

    pairs = [(seconds(200), seconds(256)) for _ in range(17)]
    assert statistics.median(short / long for short, long in pairs[2:]) < 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("form", ["aglu", "bent", "norm", "residual"])
def test_kernels_are_vectorized(dtype, layout, form):
    # A loop that the compiler left scalar takes ten times as long or more.
    images = torch.randn(3, 1, 256, 32, 32).to(dtype)
    x, residual, grad = (LAYOUTS[layout](image) for image in images)
    small = torch.ones(256)
    lam, kappa = small.clone().requires_grad_(), small.clone().requires_grad_()
    norm = small, small, small, small, 1e-5
    calls = {
        "aglu": lambda x: aglu(x, lam, kappa),
        "bent": lambda x: aglu(x, lam, kappa, None, 0.1, 6.0),
        "norm": lambda x: norm_aglu(x, *norm, lam, kappa),
        "residual": lambda x: norm_aglu(x, *norm, lam, kappa, None, residual),
    }

    def seconds(function):
        own = x.detach().requires_grad_()
        start = time.perf_counter()
        function(own).backward(grad)
        return time.perf_counter() - start

    pairs = [(seconds(calls[form]), seconds(F.silu)) for _ in range(17)]
    assert statistics.median(ours / silu for ours, silu in pairs[2:]) < 6


def test_operators_check_what_they_are_given():
    x, one, two = torch.randn(2, 3, 4, 4), torch.ones(1), torch.ones(2)
    aglu(x, one, one)  # loads them
    ops = torch.ops.apa_mmdet
    rest = *(0, 1, 0.0, math.inf, *(None,) * 4, 0.0, *(None,) * 6), 0.0, False, False
    needs = [True, True, True] + [False] * 6
    with pytest.raises(ValueError, match=r"lam has shape \(2,\)"):
        ops.activation_backward(x, x, two, one, *rest, needs)
    with pytest.raises(ValueError, match="a gradient of the shape of x"):
        ops.activation_backward(x[:1], x, one, one, *rest, needs)
    with pytest.raises(ValueError, match="one value per channel"):
        ops.through_statistics_(x, x, one, *torch.ones(2, 3), 1e-5, *torch.ones(2, 3))


def test_no_channels():
    x, one = torch.zeros(2, 0, 3, 3), torch.ones(1)
    for small in (torch.ones(0), one):
        own = [tensor.detach().requires_grad_() for tensor in (x, small, small)]
        with use_implementation("native"):
            y = norm_aglu(own[0], *torch.ones(4, 0), 1e-5, *own[1:])
            y = y + aglu(*own)
        grads = torch.autograd.grad(y, own, torch.zeros_like(y))
        assert all(torch.equal(grad, 0 * true) for grad, true in zip(grads, own))


def test_extreme_inputs_stay_finite():
    sizes = torch.tensor([0.0, 1e-30, 1.0, 60.0, 90.0, 1e4, 1e15, 3e38])
    x = torch.cat([sizes, -sizes])
    for lam in (-1.0, 0.0, 1e-30, 9.9e-5, 1e-4, 1.0, 1e4):
        for kappa in (-50.0, 0.0, 1.0, 50.0):
            own = [x, torch.tensor([lam]), torch.tensor([kappa])]
            own = [tensor.clone().requires_grad_() for tensor in own]
            with use_implementation("native"):
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
    with use_implementation("native"):
        found = run(function, tensors, torch.float32)
    for ours, true in zip(found, expected):
        torch.testing.assert_close(
            ours.double(), true, rtol=4e-6, atol=4e-6 * true.abs().max().item()
        )


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("function", [aglu, apa])
def test_not_a_number_is_not_hidden(lam, function):
    x = torch.tensor([1.0, float("nan"), -1.0])
    with use_implementation("native"):
        y, *grads = run(function, [x, torch.tensor([lam]), torch.ones(1)], x.dtype)
    assert y.isnan().tolist() == grads[0].isnan().tolist() == [False, True, False]
    assert grads[1].isnan() and grads[2].isnan()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001])  # the usual NaN, another
@pytest.mark.parametrize("params", [1, 4])
@pytest.mark.parametrize("name", ["lam", "kappa"])
@pytest.mark.parametrize("function", [aglu, apa])
def test_parameters_that_are_not_numbers_show(bits, params, name, function):
    tensors = dict(lam=torch.ones(params), kappa=torch.ones(params))
    tensors[name][-1] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    x = torch.randn(3, 4)
    with use_implementation("native"):
        y, grad, *_ = run(function, [x, *tensors.values()], torch.float32)
    expected = tensors[name].isnan().expand_as(x)
    assert torch.equal(y.isnan(), expected) and torch.equal(grad.isnan(), expected)


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("params", [1, C])
@pytest.mark.parametrize("options", [(0.1, None), (0.0, 1.0), (0.2, 0.5), (-0.3, 2.0)])
def test_slope_and_bound(layout, params, options):
    def separately(x, lam, kappa):
        y = torch.lerp(aglu(x, lam, kappa), x, options[0])
        return y if options[1] is None else y.clamp(max=options[1])

    def as_one(x, lam, kappa):
        return aglu(x, lam, kappa, None, *options)

    tensors = draw(layout, params)
    expected = run(separately, tensors, torch.float64)
    assert all(map(torch.equal, run(as_one, tensors, torch.float64), expected))
    with use_implementation("native"):
        found = run(as_one, tensors, torch.float32)
    for ours, true in zip(found, expected):
        torch.testing.assert_close(
            ours.double(), true, rtol=4e-6, atol=4e-6 * true.abs().max().item()
        )


def test_float64_parameters_of_a_float32_input():
    x = torch.randn(4, 4)
    lam, kappa = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in "ab")
    y = aglu(x, lam, kappa)
    y.sum().backward()
    assert y.dtype == torch.float32 and lam.grad.dtype == torch.float64
    torch.testing.assert_close(y, torch.nn.functional.silu(x))


def test_a_backward_pass_is_that_of_its_forward_pass():
    x = torch.randn(4, 4, requires_grad=True)
    one = torch.ones(1)
    with use_implementation("plain"):
        y = aglu(x, one, one)
    assert type(y.grad_fn).__name__ == "_PlainAPABackward"
    with use_implementation("native"):
        y.sum().backward()
    torch.testing.assert_close(x.grad, formula.aglu_grads(x.detach(), one, one)[0])


def test_choosing():
    x, one = torch.randn(4, 4), torch.ones(1)
    with pytest.raises(ValueError, match="name='fast', expected one of auto, plain"):
        with use_implementation("fast"):
            pass
    with use_implementation("plain"):
        assert not is_native(x, one, one)
        with use_implementation("auto"):
            assert is_native(x, one, one)
        assert not is_native(x, one, one)
    assert is_native(x, one, one) and is_native(x.half(), one, one)
    assert not is_native(x.double(), one, one)
    with use_implementation("native"):
        with pytest.raises(RuntimeError, match="x is torch.float64 on cpu, expected"):
            aglu(x.double(), one, one)


def test_a_request_tells_the_reason_even_after_a_fallback(monkeypatch):
    monkeypatch.setitem(implementation._available, "meta", False)
    monkeypatch.setattr(
        implementation,
        "_why_unavailable",
        lambda device: None if device == "cpu" else "no Triton",
    )
    x = torch.ones(2, device="meta")
    assert not is_native(x, x, x)
    with use_implementation("native"):
        with pytest.raises(RuntimeError, match="is unavailable: no Triton"):
            is_native(x, x, x)


# ---- How torch sees the operators


def operator_calls():
    """Return operators, each with arguments as a network gives them."""
    extension.load()
    ops = torch.ops.apa_mmdet
    x = torch.randn(2, 4, 3, 5, requires_grad=True)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    one = [torch.rand(1).requires_grad_() for _ in range(2)]
    each = [torch.rand(4).requires_grad_() for _ in range(2)]
    norm = [*(torch.rand(4).requires_grad_() for _ in range(2)), torch.rand(4)]
    norm += [torch.rand(4), 1e-5]
    gate = torch.rand(2, 4, requires_grad=True)
    return [
        (ops.aglu.default, (x, *one)),
        (ops.aglu.default, (last, *each, 1, 0.1, 6.0)),
        (ops.aglu.default, (x.detach()[:, :, ::2], *each)),
        (ops.apa.default, (x, *each)),
        (ops.apa.default, (torch.randn(3, 7, 4).bfloat16().requires_grad_(), *each)),
        (ops.norm_aglu.default, (x, *norm, *one)),
        (ops.norm_aglu.default, (last, *norm, *each, gate, x, *norm)),
    ]


@pytest.mark.parametrize("index", range(7))
def test_operators_are_as_torch_expects(index):
    operator, args = operator_calls()[index]
    torch.library.opcheck(operator, args)


@pytest.mark.parametrize("index", range(7))
def test_compiled_whole_with_dynamic_shapes(index):
    operator, args = operator_calls()[index]
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(operator, fullgraph=True, dynamic=True, backend=backend)
    assert torch.equal(compiled(*args), operator(*args))
    assert [n.target for n in graphs[0].graph.nodes if n.op == "call_function"] == [
        operator
    ]
    aot = torch.compile(operator, fullgraph=True, dynamic=True, backend="aot_eager")
    leaves = [t for t in args if isinstance(t, torch.Tensor) and t.requires_grad]
    grads = [
        torch.autograd.grad(f(*args).float().square().sum(), leaves)
        for f in (operator, aot)
    ]
    for eager, traced in zip(*grads):
        torch.testing.assert_close(traced, eager)


def test_functions_compile_before_their_first_use():
    program = """
import sys, torch
sys.modules["mmengine"] = None  # which is slow to import
from apa_mmdet.ops import aglu
x, one = torch.randn(3, 4), torch.ones(1)
torch._dynamo.config.error_on_recompile = True
compiled = torch.compile(aglu, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x, one, one), torch.nn.functional.silu(x))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_programs_keep_the_operator(dynamic):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), AGLU(), AGLU(4))
    sizes = {0: torch.export.Dim("n", min=1), 2: torch.export.Dim("h", min=1)}
    program = torch.export.export(
        module, (torch.randn(2, 3, 5, 5),), dynamic_shapes=(sizes,) if dynamic else None
    )
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert targets.count(torch.ops.apa_mmdet.aglu.default) == 2
    x = torch.randn(4, 3, 7, 5) if dynamic else torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_recomputes(use_reentrant):
    conv = torch.nn.Conv2d(3, 3, 1)
    act = AGLU(3)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    leaves = [x, *conv.parameters(), *act.parameters()]

    def block(x):
        return act(conv(x)).square()

    expected = torch.autograd.grad(block(x).sum(), leaves)
    y = checkpoint(block, x, use_reentrant=use_reentrant)
    y.sum().backward()
    for leaf, grad in zip(leaves, expected):
        torch.testing.assert_close(leaf.grad, grad)


def test_an_input_changed_in_place_is_noticed():
    x = torch.randn(4, requires_grad=True) * 1
    y = aglu(x, torch.ones(1), torch.ones(1))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_twice_needs_retain_graph():
    x = torch.randn(4, requires_grad=True)
    y = aglu(x, torch.ones(1), torch.ones(1)).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_transforms_work_or_are_refused():
    x, one = torch.randn(4), torch.ones(1)

    def total(x):
        return aglu(x, one, one).sum()

    expected = formula.aglu_grads(x, one, one)[0]
    torch.testing.assert_close(torch.func.grad(total)(x), expected)
    with pytest.raises(NotImplementedError, match="torch.vmap"):
        torch.vmap(lambda x: aglu(x, one, one))(x[:, None])
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(total, (x,), (x,))
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.func.grad(lambda x: torch.func.grad(total)(x).sum())(x)


def test_inference_mode():
    x, one = torch.randn(2, 4), torch.ones(1)
    with torch.inference_mode():
        y = aglu(x.clone(), one, one)
    torch.testing.assert_close(y, torch.nn.functional.silu(x))
