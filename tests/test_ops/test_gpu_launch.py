"""What is launched on a GPU, without one: plans, packing, and compiled parameters."""

import itertools
import threading

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402

from apa_mmdet.ops import (  # noqa: E402
    aglu,
    apa,
    apa_cross_entropy,
    extension,
    gpu_variants,
    norm_aglu,
)
from apa_mmdet.ops.batch_statistics import through_statistics  # noqa: E402
from apa_mmdet.testing.gpu_stand_in import Recorder, connected  # noqa: E402

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture
def recorder():
    with connected(Recorder()) as recorder:
        yield recorder


def ones(*shape, dtype=torch.float32, grad=True):
    return torch.ones(shape, dtype=dtype, requires_grad=grad)


def images(*shape, dtype=torch.float32, channels_last=False):
    x = torch.zeros(shape, dtype=dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    return x.requires_grad_()


def step(function, *tensors, **options):
    """Compute a value and all gradients."""
    y = function(*tensors, **options)
    given = [t for t in (*tensors, *options.values()) if isinstance(t, torch.Tensor)]
    torch.autograd.grad(y, [t for t in given if t.requires_grad], torch.zeros_like(y))


def norm(channels, dtype=torch.float32):
    learnt = [ones(channels, dtype=dtype) for _ in range(2)]
    return *learnt, *(ones(channels, dtype=dtype, grad=False) for _ in range(2))


def step_of_norm(x, lam, kappa, gate=None, residual=None, normed=False, **options):
    dtype = lam.dtype
    names = ("weight", "bias", "mean", "var")
    other = dict(zip([f"residual_{name}" for name in names], norm(x.shape[1], dtype)))
    step(
        norm_aglu, x, *norm(x.shape[1], dtype), 1e-5, lam, kappa, gate, residual,
        **(other if normed else {}), residual_eps=1e-5, **options,
    )  # fmt: skip


def step_of_loss(dtype, params, rare, reduction, max_slope):
    logits = images(20, 50, dtype=dtype)
    weight = ones(20, 1, grad=False) if rare else None
    step(
        apa_cross_entropy, logits, torch.zeros(20, dtype=torch.long), ones(params),
        ones(params), weight=weight, max_slope=max_slope, reduction=reduction,
        rare=ones(50, grad=False).bool() if rare else None,
    )  # fmt: skip


def kernels(recorder):
    return [variant.kernel.__name__ for variant, _, _ in recorder.launches]


def test_one_launch_forward_and_two_backward(recorder):
    x, residual = images(2, 16, 8, 8), images(2, 16, 8, 8)
    gate = ones(2, 16)
    step_of_norm(x, ones(1), ones(16), gate, residual, normed=True)
    assert kernels(recorder) == ["forward_kernel", "backward_kernel", "reduce_kernel"]
    fixed = ones(1, grad=False)
    recorder.launches.clear()
    step(aglu, x, fixed, fixed)
    assert kernels(recorder) == ["forward_kernel", "backward_kernel"]


def test_one_launch_more_through_batch_statistics(recorder):
    x = images(2, 16, 8, 8)
    step_of_norm(x, ones(1), ones(1), residual=x, batch_statistics=True)
    assert kernels(recorder)[2:] == ["reduce_kernel", "statistics_kernel"]


def test_one_launch_through_statistics_that_more_depends_on(recorder):
    x, small = images(2, 16, 8, 8), (torch.zeros(16), torch.ones(16), 1e-5)
    through = through_statistics(x, ones(16), ones(16), *small)
    assert not recorder.launches
    torch.autograd.grad(through, x, [t.detach() for t in through])
    assert kernels(recorder) == ["statistics_kernel"]


def test_nothing_is_launched_for_nothing(recorder):
    step(aglu, images(0, 16, 8, 8), ones(16), ones(1))
    assert not recorder.launches


def test_nothing_is_copied(recorder):
    for channels_last in (False, True):
        x = images(2, 16, 8, 8, channels_last=channels_last)
        lam, grad = ones(16), torch.zeros_like(x)
        torch.autograd.grad(aglu(x, lam, ones(1)), (x, lam), grad)
        for _, _, arguments in recorder.launches[:2]:
            assert arguments["x"] == x.data_ptr()
            assert arguments["lam"] == lam.data_ptr()
        assert recorder.launches[1][2]["grad"] == grad.data_ptr()
        recorder.launches.clear()


def test_what_is_aligned(recorder):
    def aligned(x, *sizes):
        recorder.launches.clear()
        step(aglu, x, *(ones(size) for size in sizes))
        return set(recorder.launches[0][0].aligned)

    assert aligned(images(2, 16, 8, 8), 1, 1) == {"x", "out", "inner"}
    assert aligned(images(2, 5, 8, 8), 5, 1) == {"x", "out", "inner"}
    assert aligned(images(2, 16, 5, 5, channels_last=True), 16, 1) == {
        "x", "out", "channels"
    }  # fmt: skip
    assert not aligned(images(2, 16, 5, 5), 16, 1)
    assert not aligned(images(3, 5, 5, 5), 1, 1)
    shifted = torch.zeros(1 + 2 * 16 * 64)[1:].reshape(2, 16, 8, 8).requires_grad_()
    assert not aligned(shifted, 1, 1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_few_kernels_whatever_the_images_sizes(recorder, channels_last, per_channel):
    """Feature maps of strides 8 to 64 of 60 image sizes, 256 channels."""
    generator = torch.Generator().manual_seed(0)
    size = 256 if per_channel else 1
    for _ in range(60):
        height, width = torch.randint(240, 667, (2,), generator=generator).tolist()
        for stride in (8, 16, 32, 64):
            shape = (1, 256, -(-height // stride), -(-width // stride))
            x = images(*shape, channels_last=channels_last)
            step(aglu, x, ones(size), ones(size))
    found = [text for text in recorder.descriptions if text.startswith("backward")]
    assert len(found) <= 4, found


def test_every_tile_belongs_to_one_program(recorder):
    """The programs of a launch, each with its steps, cover every element once."""
    for shape, size in itertools.product(
        [(2, 3, 50, 70), (4, 40, 7, 7), (3, 300, 1, 1), (1, 1, 1000, 1000)], (1, "C")
    ):
        for channels_last in (False, True):
            x = images(*shape, channels_last=channels_last)
            size = shape[1] if size == "C" else size
            with connected(Recorder(), programs=4) as few:
                step(aglu, x, ones(size), ones(size))
            for variant, programs, numbers in few.launches[:2]:
                block_c, block_i = (variant.constants[f"BLOCK_{i}"] for i in "CI")
                columns = -(-numbers["channels"] // block_c)
                tiles = -(-numbers["inner"] // block_i)
                steps, rows = numbers.get("steps", 1), numbers["rows"]
                assert (rows - 1) * steps < tiles <= rows * steps
                images_ = programs // (columns * rows)
                assert images_ * columns * rows == programs
                assert images_ * numbers["channels"] * numbers["inner"] == x.numel()


def test_a_failed_compilation_is_told():
    class Failing(Recorder):
        def compile(self, description, key, compiled):
            raise ValueError("no such register")

    with connected(Failing()):
        with pytest.raises(RuntimeError, match="ValueError: no such register"):
            aglu(images(4), ones(1), ones(1))
    with connected(Recorder()) as recorder:
        aglu(images(4), ones(1), ones(1))
    assert len(recorder.launches) == 1


def test_a_failed_launch_is_told():
    class Failing(Recorder):
        def run(self, *_):
            raise ValueError("out of order")

    with connected(Failing()):
        with pytest.raises(RuntimeError, match="ValueError: out of order"):
            aglu(images(4), ones(1), ones(1))


def test_threads_may_meet_variants_at_once():
    errors = []

    def work():
        try:
            for size in (1, 16):
                step(aglu, images(2, 16, 8, 8), ones(size), ones(size))
        except Exception as error:
            errors.append(error)

    with connected(Recorder()) as recorder:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert len(recorder.launches) == 8 * 6
    assert len(set(recorder.descriptions)) == 6


def test_a_stand_in_leaves_the_cpu_to_its_own_kernels():
    x = torch.randn(10)
    expected = aglu(x, ones(1, grad=False), ones(1, grad=False))
    with connected(Recorder()):
        pass
    assert torch.equal(aglu(x, ones(1, grad=False), ones(1, grad=False)), expected)


# ------------------------------------------------------------------- compiled kernels
def some_calls():
    """Call with every kernel, every dtype and every kind of argument, sparingly."""
    step(apa, images(2, 32, 8, 8), ones(1), ones(1))
    step(aglu, images(2, 32, 8, 8), ones(1), ones(32), negative_slope=0.1)
    step_of_loss(torch.float32, 1, False, "none", None)
    step_of_loss(torch.float16, 50, True, "sum", 20.0)
    x = images(2, 32, 8, 8, channels_last=True)
    own_gate = ones(2, 32)
    step_of_norm(
        x, ones(32), ones(1), own_gate, x, True, max_value=6.0, batch_statistics=True
    )
    for dtype in HALVES:
        x = images(2, 32, 8, 8, dtype=dtype)
        step_of_norm(x, ones(1, dtype=dtype), ones(1, dtype=dtype), residual=x)


def all_calls():
    """Call with every form, dtype and flag."""
    for dtype, channels_last in itertools.product((torch.float32, *HALVES), (0, 1)):
        x = images(2, 32, 16, 16, dtype=dtype, channels_last=channels_last)
        odd = images(2, 9, 5, 7, dtype=dtype, channels_last=channels_last)
        for size in (1, 32):
            step(apa, x, ones(size), ones(1))
            for options in ({}, dict(negative_slope=0.1), dict(max_value=6.0)):
                step(aglu, x, ones(size), ones(size), **options)
        step(aglu, odd, ones(9), ones(1))
        step(aglu, x, ones(1), ones(1, grad=False))
        step(aglu, x, ones(1, dtype=dtype), ones(32, dtype=dtype))
        for gate, other in itertools.product((False, True), ("", "plain", "normed")):
            own_gate = ones(2, 32, dtype=dtype) if gate else None
            residual = x if other else None
            step_of_norm(x, ones(1), ones(1), own_gate, residual, other == "normed")
            half = ones(32, dtype=dtype)
            step_of_norm(x, half, half, own_gate, residual, other == "normed")
        both = dict(negative_slope=0.1, max_value=6.0, batch_statistics=True)
        step_of_norm(x, ones(32), ones(1), ones(2, 32), x, True, **both)
        for params, rare, reduction in itertools.product(
            (1, 50), (False, True), ("none", "sum")
        ):
            step_of_loss(dtype, params, rare, reduction, 20.0 if rare else None)


@pytest.mark.parametrize(
    "calls, targets",
    [
        (some_calls, (90,)),
        pytest.param(all_calls, (80, 90), marks=pytest.mark.slow),
    ],
)
def test_compiled_parameters_are_those_that_are_packed(recorder, calls, targets):
    calls()
    for description, target in itertools.product(recorder.descriptions, targets):
        variant = gpu_variants.parse(description)
        kernel = variant.compile(GPUTarget("cuda", target, 32))
        order = variant.order(kernel.asm["ptx"])
        assert f".entry {kernel.metadata.name}(" in kernel.asm["ptx"]
        assert kernel.metadata.shared <= 48 << 10 and kernel.asm["cubin"]
        named = [variant.names[at] for at in order if at >= 0]
        assert set(named) == set(variant.arguments), description


def test_other_parameters_are_refused(recorder):
    step(aglu, images(4), ones(1), ones(1))
    variant = gpu_variants.parse(recorder.descriptions[0])
    given = [variant.arguments[name] for name in variant.arguments]
    types = ["u64" if kind[0] == "*" else "u32" for kind in given]

    def entry(types):
        return f".entry k(\n{', '.join(f'.param .{kind} p' for kind in types)})"

    assert variant.order(entry([*types, "u64", "u64"]))[-2:] == [-1, -1]
    for wrong in (
        types[1:],
        ["u32", *types[1:]],
        [*types, "u32"],
        [*types, *3 * ["u64"]],
    ):
        with pytest.raises(RuntimeError, match="forward_kernel has parameters"):
            variant.order(entry(wrong))


def test_numbers_are_read_from_their_bits():
    assert gpu_variants.number(0x3FC00000, "fp32") == 1.5
    assert gpu_variants.number(7, "i32") == 7


def test_kernels_are_unavailable_without_a_gpu_build():
    if torch.version.cuda or torch.version.hip:
        assert gpu_variants.why_unavailable() is None
    else:
        assert "built for the CPU" in gpu_variants.why_unavailable()
    assert extension.load().exists()
