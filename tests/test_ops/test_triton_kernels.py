"""The Triton kernels against plain torch in float64: on a GPU, or interpreted.

Triton decides when it is imported whether to interpret, so that the ordinary suite runs
the cases of this file in a process of its own.
"""

import os
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from apa_mmdet.ops import (  # noqa: E402
    affine_aglu,
    aglu,
    apa,
    formula,
    implementation,
    triton_kernels,
    use_implementation,
)
from apa_mmdet.ops.implementation import chosen  # noqa: E402

INTERPRETED = triton_kernels.INTERPRETED
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
    "empty": lambda x: x[:0],
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of the largest value: rounding in float32 of sums, or once at the end.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def parameters(lam, kappa):
    return draw(lam, seed=1).exp(), 1 + 0.5 * draw(kappa, seed=2)


def run(function, tensors, implementation):
    """Return the value, and all gradients for a fixed weight of each element."""
    own = [
        None if tensor is None else tensor.detach().requires_grad_()
        for tensor in tensors
    ]
    with use_implementation(implementation):
        y = function(*own)
    # Exact in every dtype, and so the gradient that comes in.
    weight = (torch.arange(y.numel(), device=y.device) % 25 - 8) / 8
    loss = (y.to(weight.dtype).flatten() * weight).sum()
    given = [tensor for tensor in own if tensor is not None]
    return y, *torch.autograd.grad(loss, given)


def compare(function, tensors, dtypes):
    """Check value and gradients of the kernels, given each argument's dtype."""
    ours = []
    for tensor, dtype in zip(tensors, dtypes):
        ours.append(None if tensor is None else tensor.to(DEVICE, dtype))
    rounded = [None if tensor is None else tensor.double().cpu() for tensor in ours]
    found = run(function, ours, "triton")
    expected = run(function, rounded, "plain")
    given = [dtype for dtype, tensor in zip(dtypes, tensors) if tensor is not None]
    for one, true, dtype in zip(found, expected, [dtypes[0], *given]):
        assert one.dtype == dtype
        scale = true.abs().max().item() if true.numel() else 0.0
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(
            one.cpu().double(), true, rtol=tolerance, atol=tolerance * scale
        )
    return found


@case
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lam, kappa", [(1, 1), (C, C), (1, C)])
@pytest.mark.parametrize("function", [apa, aglu])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_plain_torch(layout, lam, kappa, function, dtype):
    x = LAYOUTS[layout](3 * draw(N, C, H, W))
    tensors = [x, *parameters(lam, kappa)]
    value, *_ = compare(function, tensors, [dtype, torch.float32, torch.float32])
    if layout in ("channels_last", "turned tokens"):
        # Without parameters per channel, all that counts is that there are no holes.
        assert value.stride() == x.stride() or layout == "turned tokens"


@case
@pytest.mark.parametrize("size", [0, 1, 31, 1025, 2**20 + 3])
@pytest.mark.parametrize("function", [apa, aglu])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size(size, function, dtype):
    if INTERPRETED and size > 2000 and (function, dtype) != (aglu, torch.float32):
        pytest.skip("20 seconds each in the interpreter")
    tensors = [3 * draw(size), *parameters(1, 1)]
    compare(function, tensors, [dtype, torch.float32, torch.float32])


@case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_half_precision(dtype):
    tensors = [3 * draw(N, C, H, W), *parameters(C, 1)]
    compare(aglu, tensors, [torch.float32, dtype, dtype])


@case
@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "1x1", "slice", "empty"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("residual", ["none", "plain", "scaled"])
@pytest.mark.parametrize("params", [1, C])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_affine_equals_plain_torch(layout, per_image, residual, params, dtype):
    x = LAYOUTS[layout](3 * draw(N, C, H, W))
    small = (len(x), C) if per_image else (C,)
    tensors = [x, draw(*small, seed=3), draw(*small, seed=4), *parameters(params, 1)]
    kinds = [dtype, *[torch.float32] * 4]
    if residual != "none":
        tensors.append(LAYOUTS[layout](draw(N, C, H, W, seed=5)))
        kinds.append(dtype)
    if residual == "scaled":
        tensors += [draw(C, seed=6), draw(C, seed=7)]
        kinds += [torch.float32] * 2
    compare(affine_aglu, tensors, kinds)


@case
def test_a_residual_of_another_layout_and_dtype():
    x, residual = draw(N, C, H, W), draw(N, C, H, W, seed=5)
    residual = residual.to(memory_format=torch.channels_last)
    tensors = [x, draw(C), draw(C, seed=4), *parameters(1, 1), residual]
    compare(affine_aglu, tensors, [*[torch.float32] * 5, torch.bfloat16])


@case
@pytest.mark.parametrize("channels", [3, 20, 1100])
def test_several_tiles_of_one_program(monkeypatch, channels):
    monkeypatch.setattr(triton_kernels, "_MANY", 1)
    x = draw(2, channels, 3, 11).to(memory_format=torch.channels_last)
    launch = triton_kernels._Launch(
        x, 1, torch.ones(channels), torch.ones(1), None, None, backward=True
    )
    assert launch.constants["STEPS"] > 1
    tensors = [x, *parameters(channels, channels)]
    compare(aglu, tensors, [torch.float32] * 3)
    small = [draw(2, channels, seed=3), draw(2, channels, seed=4)]
    compare(affine_aglu, [x, *small, *parameters(1, 1)], [torch.float32] * 5)


@case
@pytest.mark.parametrize("lam", [-1.0, 0.0, 1e-7, 1e-3, 1.0, 50.0, 1e6])
@pytest.mark.parametrize("kappa", [-2.0, 0.0, 1.0, 50.0])
@pytest.mark.parametrize("function", [apa, aglu])
def test_every_lam(lam, kappa, function):
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)
    tensors = [x, torch.tensor([lam]), torch.tensor([kappa])]
    compare(function, tensors, [torch.float32] * 3)


@case
@pytest.mark.parametrize("function", [apa, aglu])
def test_extreme_inputs_stay_finite(function):
    sizes = torch.tensor([0.0, 1e-30, 1.0, 60.0, 90.0, 1e4, 1e15, 3e38])
    x = torch.cat([sizes, -sizes]).to(DEVICE)
    oracle = getattr(formula, function.__name__)
    for lam in (0.0, 1e-4, 1.0, 1e4):
        for kappa in (-50.0, 0.0, 1.0, 50.0):
            own = [x, torch.tensor([lam]), torch.tensor([kappa])]
            own = [tensor.to(DEVICE).clone().requires_grad_() for tensor in own]
            with use_implementation("triton"):
                y = function(*own)
                y.backward(torch.full_like(y, 1e-20))
            assert y.isfinite().all() and own[0].grad.isfinite().all(), (lam, kappa)
            exact = oracle(*(tensor.detach().double() for tensor in own))
            torch.testing.assert_close(y.double(), exact, rtol=2e-5, atol=3e-7)


@case
def test_not_a_number_is_not_hidden():
    nan = torch.tensor([float("nan")], device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    with use_implementation("triton"):
        for tensors in ((nan, one, one), (one, nan, one), (one, one, nan)):
            assert aglu(*tensors).isnan().all()


@case
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("params", [1, C])
def test_two_runs_of_backward_are_bitwise_equal(layout, params):
    tensors = [LAYOUTS[layout](3 * draw(N, C, 35, 31)), *parameters(params, params)]
    first, second = (compare(aglu, tensors, [torch.float32] * 3) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


@case
def test_nothing_is_copied(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    monkeypatch.setattr(torch.Tensor, "copy_", None)
    monkeypatch.setattr(triton_kernels, "_packed", lambda tensor: tensor)
    x = torch.empty(N, C, H, W, device=DEVICE).to(memory_format=torch.channels_last)
    small = torch.ones(C, device=DEVICE)
    out = triton_kernels.forward("aglu", x, small, small, 1, small, small, x)
    triton_kernels.backward("aglu", x, small, small, out, 1, True, small, small, x)


@case
def test_what_is_chosen():
    x, one = torch.randn(4, 4, device=DEVICE), torch.ones(1, device=DEVICE)
    assert chosen(x, one, one) == "triton"
    assert chosen(x.double(), one, one) == "plain"
    assert chosen(x, one.double(), one) == "plain"
    with use_implementation("plain"):
        assert chosen(x, one, one) == "plain"
    with use_implementation("triton"):
        with pytest.raises(RuntimeError, match="float64 on .*, expected float32 or"):
            aglu(x.double(), one, one)


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


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_compile_keeps_one_graph(dtype):
    def function(x, lam, kappa):
        return aglu(2 * x, lam, kappa) + 1

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for size in (16, 30, 57):
        tensors = [3 * draw(2, C, size, size), *parameters(C, 1)]
        tensors = [tensor.to("cuda", torch.float32) for tensor in tensors]
        tensors[0] = tensors[0].to(dtype)
        for one, other in zip(
            run(compiled, tensors, "auto"), run(function, tensors, "auto")
        ):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@on_a_gpu
def test_under_a_cuda_graph_and_without_waiting():
    x = torch.randn(N, C, H, W, device="cuda", requires_grad=True)
    lam, kappa = (t.float().cuda().requires_grad_() for t in parameters(C, C))

    def step():
        y = aglu(x, lam, kappa)
        return y, *torch.autograd.grad(y.square().sum(), (x, lam, kappa))

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
def test_autocast():
    layer = torch.nn.Linear(8, C).cuda()
    lam, kappa = (t.float().cuda().requires_grad_() for t in parameters(C, C))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = aglu(layer(torch.randn(4, 8, device="cuda")), lam, kappa)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert lam.grad.isfinite().all() and layer.weight.grad.isfinite().all()


# ---------------------------------------------------------------------- without a GPU
@pytest.mark.skipif(INTERPRETED, reason="it is the interpreter's process")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", __file__]
    result = subprocess.run(
        command, capture_output=True, text=True, env=interpreting(), check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 300


def interpreting():
    return {**os.environ, "TRITON_INTERPRET": "1"}


def specialised(kernel, launch, **constants):
    """Return what Triton compiles a kernel for: constants and properties of sizes."""
    kinds = []
    for name, size in zip(kernel.arg_names[kernel.arg_names.index("channels") :],
                          launch.sizes):  # fmt: skip
        fixed = name in ("scale_stride_b", "sums_stride")
        kinds.append((name, None if fixed else (size == 1, size % 16 == 0)))
    return (*kinds, *sorted({**launch.constants, **constants}.items()))


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_few_kernels_whatever_the_images_sizes(layout, per_channel):
    """Feature maps of strides 4 to 64 of 200 image sizes, 256 channels."""
    generator = torch.Generator().manual_seed(0)
    small = torch.ones(256 if per_channel else 1)
    seen = set()
    for _ in range(200):
        height, width = torch.randint(480, 1334, (2,), generator=generator).tolist()
        for stride in (4, 8, 16, 32, 64):
            shape = (2, 256, -(-height // stride), -(-width // stride))
            x = LAYOUTS[layout](torch.empty(shape, device="meta"))
            launch = triton_kernels._Launch(
                x, 1, small, small, None, None, backward=True
            )
            kernel = triton_kernels._backward_kernel
            seen.add(specialised(kernel, launch, FORM=1, NEED_PARAMS=True))
    assert len(seen) <= 4, seen


@pytest.mark.skipif(INTERPRETED, reason="torch cannot trace what is interpreted")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
def test_torch_compile_traces_once_whatever_the_size(monkeypatch, train, layout):
    """Trace only: tensors of the CPU stand for those of a GPU."""
    monkeypatch.setattr(implementation, "triton_kernels", triton_kernels)
    monkeypatch.setitem(implementation.KERNELS, "triton", triton_kernels)
    monkeypatch.setattr(triton_kernels, "applies", lambda *_: True)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return lambda *given: [torch.zeros(0)]

    def function(x, lam, kappa):
        return aglu(2 * x, lam, kappa) + 1

    torch._dynamo.reset()
    traced = torch.compile(function, backend=backend, fullgraph=True, dynamic=True)
    lam, kappa = (t.float().requires_grad_(train) for t in parameters(C, 1))
    for size in (30, 64, 57, 200, 131):
        x = LAYOUTS[layout](torch.empty(2, C, size, 2 * size + 1))
        traced(x.requires_grad_(train), lam, kappa)
    assert len(graphs) == 1
    assert "apa_mmdet.activation" in graphs[0]
    assert ("apa_mmdet.activation_backward" in graphs[0]) == train


def compiled(kernel, dtype, capability, launch, **constants):
    """Return a kernel as compiled for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants |= launch.constants
    sizes = dict(zip(kernel.arg_names[kernel.arg_names.index("channels") :],
                     (*launch.sizes, 7)))  # fmt: skip
    signature, attributes = {}, {}
    for at, name in enumerate(kernel.arg_names):
        if name in constants or sizes.get(name) == 1:
            signature[name] = "constexpr"
            constants.setdefault(name, 1)
        elif name in sizes:
            signature[name] = "i32"
        else:
            small = name.startswith(("sums", "lam", "kappa", "sc", "sh", "residual_s"))
            signature[name] = "*fp32" if small else f"*{dtype}"
        if name.endswith("_ptr") or sizes.get(name, 1) % 16 == 0:
            attributes[at,] = [["tt.divisibility", 16]]
    constants = {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton_kernels.triton.compile(source, target=target)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype, width", [("fp32", 4), ("bf16", 8), ("fp16", 8)])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("form", range(4))
def test_compiles_to_wide_memory_accesses(capability, dtype, width, layout, form):
    """8 elements of a thread: as few loads, stores and exponentials as can be."""
    x = LAYOUTS[layout](torch.empty(2, 256, 200, 304, device="meta"))
    scale = torch.ones(256) if form >= 2 else None
    small, wide = torch.ones(256), 8 // width
    for backward in (False, True):
        name = "_backward_kernel" if backward else "_forward_kernel"
        launch = triton_kernels._Launch(
            x, 1, small, small, scale, None, backward=backward
        )
        extra = dict(NEED_PARAMS=True) if backward else {}
        kernel = getattr(triton_kernels, name)
        made = compiled(kernel, dtype, capability, launch, FORM=form, **extra)
        ptx = made.asm["ptx"]
        maps = 1 + backward + (form == 3)
        loads = len(re.findall(r"ld\.global\.v4\.b32", ptx))
        small_loads = 0 if layout == "NCHW" else 8
        assert maps * wide <= loads <= maps * wide + small_loads, loads
        stores = 1 + (backward and form == 3)
        found = len(re.findall(r"st\.global\.v4\.b32", ptx))
        assert stores * wide <= found <= stores * wide + (5 if backward else 0)
        assert ptx.count("ex2.approx") == 16
        assert not re.findall(r"\batom\b|\bred\b|local", ptx)


@pytest.mark.skipif(
    bool(torch.version.cuda or torch.version.hip), reason="this torch has Triton"
)
def test_what_is_said_where_there_is_none():
    program = "import apa_mmdet.ops as o\nwith o.use_implementation('triton'): pass"
    environment = {**os.environ}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 1
    assert "this torch is built for the CPU. Install a torch built for CUDA" in (
        result.stderr
    )
