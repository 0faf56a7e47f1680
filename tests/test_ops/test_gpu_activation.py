"""The GPU kernels against plain torch in float64: on a GPU, or interpreted.

Triton decides when it is imported whether to interpret, so the ordinary suite runs the
cases of this file in a process of its own, where C++ plans and packs each launch as for
a GPU and Triton's interpreter carries it out.
"""

import contextlib
import os
import re
import subprocess
import sys
import threading

import pytest
import torch

pytest.importorskip("triton")

from apa_mmdet.ops import (  # noqa: E402
    aglu,
    apa,
    extension,
    formula,
    gpu_variants,
    norm_aglu,
    use_implementation,
)
from apa_mmdet.ops.batch_statistics import through_statistics  # noqa: E402
from apa_mmdet.testing import gpu_stand_in  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
case = (lambda test: test) if INTERPRETED else pytest.mark.gpu
on_a_gpu = pytest.mark.gpu
N, C, H, W = 2, 20, 9, 7
LAYOUTS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "1x1": lambda x: x[:, :, :1, :1].contiguous(),
    "pairs": lambda x: x[:, :, 0, 0],
    "tokens": lambda x: x.flatten(2).transpose(1, 2).contiguous(),
    "turned tokens": lambda x: x.flatten(2).transpose(1, 2),
    "slice": lambda x: x[:, :, ::2, 1:],
    "expanded": lambda x: x[:, :, :1].expand(N, C, H, W),
    "aligned": lambda x: x[..., :8, :4].repeat(1, 2, 1, 1)[:, :32].contiguous(),
    "empty": lambda x: x[:0],
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of the largest value: rounding in float32 of sums, or once at the end.
TOLERANCE = {
    torch.float64: 3e-6,
    torch.float32: 3e-6,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}


@pytest.fixture(scope="module", autouse=True)
def launched():
    """Let the interpreter stand in for the GPU, or start on a fresh one."""
    if INTERPRETED:
        with gpu_stand_in.connected(gpu_stand_in.Interpreter()):
            yield
    else:
        yield


@contextlib.contextmanager
def few_programs(count):
    """Give each program several tiles."""
    if INTERPRETED:
        with gpu_stand_in.connected(gpu_stand_in.Interpreter(), count):
            yield
        gpu_variants.connect(extension.load(), gpu_stand_in.Interpreter(), True)
    else:
        gpu_variants.connect(extension.load(), programs=count)
        try:
            yield
        finally:
            gpu_variants.connect(extension.load())


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def parameters(lam, kappa):
    return draw(lam, seed=1).exp(), 1 + 0.5 * draw(kappa, seed=2)


def run(function, tensors, implementation, constant=()):
    """Return the value, and all gradients for a fixed weight of each element."""
    own = {
        name: tensor.detach().requires_grad_(name not in constant)
        for name, tensor in tensors.items()
    }
    with use_implementation(implementation):
        y = function(**own)
    # Exact in every dtype, and so the gradient that comes in.
    weight = (torch.arange(y.numel(), device=y.device) % 25 - 8) / 8
    loss = (y.to(weight.dtype).flatten() * weight).sum()
    given = [tensor for tensor in own.values() if tensor.requires_grad]
    return y, *torch.autograd.grad(loss, given)


def compare(function, tensors, dtype, others=torch.float32, constant=(), roundings=1):
    """Check value and gradients of the kernels; the feature maps have ``dtype``."""
    kinds = {
        name: dtype if name in ("x", "residual", "gate") else others for name in tensors
    }
    ours = {name: tensor.to(DEVICE, kinds[name]) for name, tensor in tensors.items()}
    rounded = {name: tensor.double().cpu() for name, tensor in ours.items()}
    found = run(function, ours, "native", constant)
    expected = run(function, rounded, "plain", constant)
    wanted = [dtype, *(kinds[name] for name in tensors if name not in constant)]
    for one, true, kind in zip(found, expected, wanted):
        assert one.dtype == kind
        scale = true.abs().max().item() if true.numel() else 0.0
        tolerance = roundings * TOLERANCE[kind]
        spacing = 6e-8 if kind == torch.float16 else 0  # of its smallest numbers
        torch.testing.assert_close(
            one.cpu().double(), true, rtol=tolerance, atol=tolerance * scale + spacing
        )
    return found


def pair(x, lam, kappa):
    return dict(x=x, lam=lam, kappa=kappa)


@case
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lam, kappa", [(1, 1), ("C", "C"), (1, "C")])
@pytest.mark.parametrize("function", [apa, aglu])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_plain_torch(layout, lam, kappa, function, dtype):
    if INTERPRETED and dtype == torch.float16 and layout not in ("NCHW", "aligned"):
        pytest.skip("as in bfloat16")
    x = LAYOUTS[layout](3 * draw(N, C, H, W))
    channels = x.shape[-1] if x.dim() == 3 else x.shape[1]
    sizes = (channels if size == "C" else size for size in (lam, kappa))
    value, *_ = compare(function, pair(x, *parameters(*sizes)), dtype)
    assert value.stride() == torch.empty_like(x).stride()


@case
@pytest.mark.parametrize("size", [0, 1, 31, 1025, 2**20 + 3])
@pytest.mark.parametrize("function", [apa, aglu])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size(size, function, dtype):
    if INTERPRETED and size > 2000:
        pytest.skip("20 seconds each in the interpreter")
    compare(function, pair(3 * draw(size), *parameters(1, 1)), dtype)


@case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_other_precision(dtype):
    tensors = pair(3 * draw(N, C, H, W), *parameters(C, 1))
    compare(aglu, tensors, torch.float32, dtype)


@case
@pytest.mark.parametrize("function", ["slope", "bound", "both"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slope_and_bound(function, dtype):
    options = {
        "slope": dict(negative_slope=0.1),
        "bound": dict(max_value=3.0),
        "both": dict(negative_slope=0.2, max_value=2.0),
    }[function]
    tensors = pair(3 * draw(N, C, H, W), *parameters(1, C))
    compare(lambda **own: aglu(**own, **options), tensors, dtype)


def with_norm(layout="NCHW", gate=False, residual="none", params=1, affine=True):
    x = LAYOUTS[layout](3 * draw(N, C, H, W) + 1)
    channels = x.shape[1]
    own = dict(mean=draw(channels, seed=8), var=draw(channels, seed=9).exp())
    if affine:
        own |= dict(weight=draw(channels, seed=3), bias=draw(channels, seed=4))
    if gate:
        own["gate"] = draw(*x.shape[:2], seed=10)
    if residual != "none":
        own["residual"] = LAYOUTS[layout](draw(N, C, H, W, seed=5))
    if residual == "normed":
        names = ("weight", "bias", "mean", "var")
        small = dict(zip(names, (draw(channels, seed=6 + i) for i in range(4))))
        small["var"] = small["var"].exp()
        own |= {f"residual_{name}": tensor for name, tensor in small.items()}
    return pair(x, *parameters(channels if params == "C" else 1, 1)) | own


CONSTANT = ("mean", "var", "residual_mean", "residual_var")


def normed(weight=None, bias=None, **tensors):
    return norm_aglu(weight=weight, bias=bias, eps=1e-5, residual_eps=1e-3, **tensors)


@case
@pytest.mark.parametrize(
    "layout", ["NCHW", "channels_last", "1x1", "slice", "aligned", "empty"]
)
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("residual", ["none", "plain", "normed"])
@pytest.mark.parametrize("params", [1, "C"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_equals_plain_torch(layout, gate, residual, params, dtype):
    if INTERPRETED and (params, dtype) not in ((1, torch.float32), ("C", torch.half)):
        pytest.skip("the same code as other cases")
    tensors = with_norm(layout, gate, residual, params)
    compare(normed, tensors, dtype, constant=CONSTANT)


@case
def test_norm_without_weight_and_bias():
    compare(normed, with_norm(affine=False), torch.float32, constant=CONSTANT)
    tensors = with_norm(affine=False, gate=True, residual="plain")
    compare(normed, tensors, torch.float32, constant=CONSTANT)


@case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_of_half_precision(dtype):
    tensors = with_norm("channels_last", True, "normed", "C")
    compare(normed, tensors, dtype, dtype, constant=CONSTANT)


@case
def test_norm_with_slope_and_bound():
    def function(**tensors):
        return normed(**tensors, negative_slope=0.1, max_value=2.0)

    tensors = with_norm(gate=True, residual="normed")
    compare(function, tensors, torch.float32, constant=CONSTANT)


def of_batch(x, residual, **tensors):
    """Norm both, by the statistics of this batch; plain torch forms them itself."""

    def statistics(x):
        var, mean = torch.var_mean(x.detach().float(), (0, 2, 3), correction=0)
        return mean.to(tensors["lam"].dtype), var.to(tensors["lam"].dtype)

    (mean, var), other = statistics(x), statistics(residual)
    return normed(
        **tensors, x=x, mean=mean, var=var, residual=residual, residual_mean=other[0],
        residual_var=other[1], batch_statistics=True, residual_batch_statistics=True,
    )  # fmt: skip


@case
@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "slice", "aligned"])
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_through_batch_statistics(layout, gate, affine, dtype):
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("as in float16")
    tensors = with_norm(layout, gate, "normed" if affine else "plain", 1, affine)
    tensors = {n: t for n, t in tensors.items() if not n.endswith(("mean", "var"))}
    # A gradient of 16 bits is rounded before and after what is taken off it.
    compare(of_batch, tensors, dtype, roundings=1 if dtype == torch.float32 else 2)


def gated_of_batch(x, weight, bias, **tensors):
    """A gate that depends on the same statistics."""
    var, mean = torch.var_mean(x.detach().float(), (0, 2, 3), correction=0)
    small = mean.to(weight.dtype), var.to(weight.dtype), 1e-5
    x, weight, bias = through_statistics(x, weight, bias, *small)
    gate = (x.amax((2, 3)) * weight + bias).sigmoid()
    return norm_aglu(x, weight, bias, *small, **tensors, gate=gate)


@case
@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_through_the_statistics_of_a_gate(layout, dtype):
    tensors = with_norm(layout)
    del tensors["mean"], tensors["var"]
    # What is added up in 16 bits is rounded each time.
    compare(
        gated_of_batch, tensors, dtype, roundings=1 if dtype == torch.float32 else 4
    )


@case
@pytest.mark.parametrize(
    "wanted",
    [
        ("x",),
        ("lam",),
        ("kappa", "x"),
        ("weight", "residual"),
        ("residual_bias",),
        ("gate",),
        ("bias", "residual_weight", "lam"),
    ],
)
def test_only_the_gradients_that_are_needed(wanted):
    tensors = with_norm("channels_last", True, "normed")
    constant = [name for name in tensors if name not in wanted]
    compare(normed, tensors, torch.float32, constant=constant)


@case
def test_a_residual_of_another_layout_and_dtype():
    tensors = {name: t.to(DEVICE).float() for name, t in with_norm().items()}
    residual = draw(N, C, H, W, seed=5).to(DEVICE, torch.bfloat16)
    tensors["residual"] = residual.to(memory_format=torch.channels_last)
    found = run(normed, tensors, "native", CONSTANT)
    doubles = {name: tensor.double().cpu() for name, tensor in tensors.items()}
    expected = run(normed, doubles, "plain", CONSTANT)
    for one, true in zip(found, expected):
        tolerance = 1e-2 if one.dtype == torch.bfloat16 else 1e-5
        scale = true.abs().max().item()
        torch.testing.assert_close(
            one.cpu().double(), true, rtol=tolerance, atol=tolerance * scale
        )
    assert found[-1].dtype == torch.bfloat16
    assert found[-1].stride() == tensors["residual"].stride()


@case
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("gate", [False, True])
def test_several_tiles_of_one_program(layout, gate):
    with few_programs(2):
        x = LAYOUTS[layout](3 * draw(2, C, 19, 17))
        compare(aglu, pair(x, *parameters(1, 1)), torch.float32)
        compare(aglu, pair(x, *parameters(C, C)), torch.bfloat16)
        tensors = with_norm("NCHW", gate) | dict(x=x)
        compare(normed, tensors, torch.float32, constant=CONSTANT)


@case
@pytest.mark.parametrize("lam", [-1.0, 0.0, 1e-7, 1e-3, 1.0, 50.0, 1e6])
@pytest.mark.parametrize("kappa", [-2.0, 0.0, 1.0, 50.0])
@pytest.mark.parametrize("function", [apa, aglu])
def test_every_lam(lam, kappa, function):
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)
    tensors = pair(x, torch.tensor([lam]), torch.tensor([kappa]))
    # The logarithm of a tiny lam has fewer digits after the point.
    roundings = 3 if 0 < lam < 1e-3 else 1
    for dtype in (torch.float32, torch.float16):
        compare(function, tensors, dtype, roundings=roundings)


@case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [apa, aglu])
def test_extreme_inputs_stay_finite(function, dtype):
    sizes = torch.tensor([0.0, 1e-30, 1.0, 60.0, 90.0, 1e4, 1e15, 3e38])
    x = torch.cat([sizes, -sizes]).to(DEVICE, dtype)
    oracle = getattr(formula, function.__name__)
    tolerance = 2e-5 if dtype == torch.float32 else TOLERANCE[dtype]
    for lam in (0.0, 1e-4, 1.0, 1e4):
        for kappa in (-50.0, 0.0, 1.0, 50.0):
            own = [x, torch.tensor([lam]), torch.tensor([kappa])]
            own = [tensor.to(DEVICE).clone().requires_grad_() for tensor in own]
            with use_implementation("native"):
                y = function(*own)
                y.backward(torch.full_like(y, 1e-20))
            assert y.isfinite().all(), (lam, kappa)
            assert own[0].grad.isfinite().all(), (lam, kappa)
            assert not own[1].grad.isnan().any() and not own[2].grad.isnan().any()
            exact = oracle(*(tensor.detach().double() for tensor in own))
            torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=3e-7)


@case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_not_a_number_is_not_hidden(dtype):
    nan = torch.tensor([float("nan")], device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    with use_implementation("native"):
        for x, lam, kappa in ((nan, one, one), (one, nan, one), (one, one, nan)):
            own = [x.to(dtype).requires_grad_(), lam, kappa]
            y = aglu(*own)
            assert y.isnan().all()
            (grad,) = torch.autograd.grad(y, own[0], torch.ones_like(y))
            assert grad.isnan().all()


@case
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("params", [1, C])
def test_two_runs_of_backward_are_bitwise_equal(layout, params):
    size = (15, 11) if INTERPRETED else (235, 231)
    x = LAYOUTS[layout](3 * draw(N, C, *size))
    tensors = pair(x, *parameters(params, params))
    tensors = {name: t.to(DEVICE, torch.float32) for name, t in tensors.items()}
    first, second = (run(aglu, tensors, "native") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


@on_a_gpu
@pytest.mark.parametrize("lengths", ["long", "short"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_large_tensors(lengths, dtype):
    """Many tiles a program, thousands of programs, and sums of sums."""
    shape = (4, 64, 256, 260) if lengths == "long" else (4, 2048, 25, 41)
    x = torch.randn(shape, device="cuda", dtype=dtype)
    for layout in ("NCHW", "channels_last"):
        for params in (1, shape[1]):
            tensors = pair(LAYOUTS[layout](x), *parameters(params, params))
            own = {name: tensor.to("cuda") for name, tensor in tensors.items()}
            own = {n: t if n == "x" else t.float() for n, t in own.items()}
            found = run(aglu, own, "native")
            doubles = {name: tensor.double() for name, tensor in own.items()}
            expected = run(aglu, doubles, "plain")
            for one, true in zip(found[2:], expected[2:]):
                scale = true.abs().max().item()
                torch.testing.assert_close(
                    one.double(), true, rtol=1e-5, atol=1e-5 * scale
                )
            assert torch.equal(run(aglu, own, "native")[2], found[2])


@on_a_gpu
def test_more_elements_than_32_bits_count():
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs 40 GiB")
    size = 2**31 + 4096
    x = torch.zeros(size, dtype=torch.bfloat16, device="cuda")
    x[-1], x[-4096], x[0] = 3.0, -2.0, 1.0
    one = torch.ones(1, device="cuda", requires_grad=True)
    x.requires_grad_()
    y = aglu(x, one, torch.ones(1, device="cuda"))
    ends = torch.tensor([3.0, -2.0, 1.0], device="cuda", requires_grad=True)
    true = torch.nn.functional.silu(ends)
    found = torch.stack([y[-1], y[-4096], y[0]])
    torch.testing.assert_close(found.float(), true, rtol=8e-3, atol=0)
    y.backward(torch.ones_like(y))
    true.sum().backward()
    found = torch.stack([x.grad[-1], x.grad[-4096], x.grad[0], x.grad[4]]).float()
    expected = torch.cat([ends.grad, ends.new_tensor([0.5])])
    torch.testing.assert_close(found, expected, rtol=8e-3, atol=0)


def on_cuda(tensors, dtype):
    return {
        name: tensor.to("cuda", dtype if name in ("x", "residual") else torch.float32)
        for name, tensor in tensors.items()
    }


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_compile_keeps_one_graph(dtype):
    def function(x, lam, kappa):
        return aglu(2 * x, lam, kappa) + 1

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for size in (16, 30, 57):
        tensors = on_cuda(pair(3 * draw(2, C, size, size), *parameters(C, 1)), dtype)
        for one, other in zip(
            run(compiled, tensors, "auto"), run(function, tensors, "auto")
        ):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@on_a_gpu
def test_under_a_cuda_graph_and_without_waiting():
    tensors = on_cuda(with_norm(gate=True, residual="normed"), torch.float32)
    x = tensors["x"]

    def step():
        return run(normed, tensors, "native", CONSTANT)

    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
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
    with torch.no_grad():
        x.copy_(draw(N, C, H, W, seed=9))
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(captured, step()))


@on_a_gpu
def test_a_kernel_first_met_while_a_graph_is_captured():
    x = torch.randn(3, 17, 5, device="cuda", dtype=torch.float16)
    lam, kappa = (t.cuda().half() for t in parameters(17, 17))
    graph = torch.cuda.CUDAGraph()
    gpu_variants.connect(extension.load())  # drops all variants
    with torch.cuda.graph(graph):
        captured = aglu(x, lam, kappa, channel_dim=1)
    graph.replay()
    assert torch.equal(captured, aglu(x, lam, kappa, channel_dim=1))


@on_a_gpu
def test_two_streams_at_once():
    tensors = on_cuda(with_norm("channels_last", True, "normed"), torch.float32)
    expected = run(normed, tensors, "native", CONSTANT)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(run(normed, tensors, "native", CONSTANT))
    torch.cuda.synchronize()
    for other in found:
        assert all(torch.equal(one, true) for one, true in zip(other, expected))


@on_a_gpu
def test_waits_for_what_its_own_stream_does():
    lam, kappa = (t.float().cuda() for t in parameters(1, 1))
    x = torch.zeros(1 << 20, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(2.0)
        y = aglu(x, lam, kappa)
    stream.synchronize()
    expected = formula.aglu(torch.tensor(2.0), lam.cpu(), kappa.cpu())
    torch.testing.assert_close(y[-1].cpu().reshape(1), expected)


@on_a_gpu
def test_threads_that_start_at_once():
    tensors = on_cuda(pair(3 * draw(N, C, H, W), *parameters(C, C)), torch.bfloat16)
    gpu_variants.connect(extension.load())  # every thread meets the variants first
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(run(aglu, tensors, "native")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for other in found[1:]:
        assert all(torch.equal(one, true) for one, true in zip(other, found[0]))


@on_a_gpu
def test_launched_by_python():
    tensors = on_cuda(with_norm("NCHW", True, "normed", "C"), torch.float32)
    expected = run(normed, tensors, "native", CONSTANT)
    library = extension.load()
    gpu_variants.connect(library, from_cpp=False)
    try:
        found = run(normed, tensors, "native", CONSTANT)
    finally:
        gpu_variants.connect(library)
    assert all(torch.equal(one, true) for one, true in zip(found, expected))


@on_a_gpu
def test_every_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    results = []
    for device in range(torch.cuda.device_count()):
        tensors = pair(3 * draw(N, C, H, W), *parameters(C, 1))
        own = {name: t.to(f"cuda:{device}").float() for name, t in tensors.items()}
        results.append([tensor.cpu() for tensor in run(aglu, own, "native")])
    for other in results[1:]:
        assert all(torch.equal(one, true) for one, true in zip(other, results[0]))
    assert torch.cuda.current_device() == 0


@on_a_gpu
def test_autocast():
    layer = torch.nn.Linear(8, C).cuda()
    lam, kappa = (t.float().cuda().requires_grad_() for t in parameters(C, C))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = aglu(layer(torch.randn(4, 8, device="cuda")), lam, kappa)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert lam.grad.isfinite().all() and layer.weight.grad.isfinite().all()


@on_a_gpu
def test_what_is_chosen():
    x, one = torch.randn(4, 4, device="cuda"), torch.ones(1, device="cuda")
    with use_implementation("native"):
        with pytest.raises(RuntimeError, match="float64 on .*, expected float32"):
            aglu(x.double(), one, one)
    torch.testing.assert_close(aglu(x.double(), one, one).float(), aglu(x, one, one))


# ---------------------------------------------------------------------- without a GPU
@pytest.mark.skipif(INTERPRETED, reason="it is the interpreter's process")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 200
