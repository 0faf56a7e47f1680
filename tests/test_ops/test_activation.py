"""Values and gradients of apa, aglu and log_apa."""

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

from apa_mmdet.ops import aglu, apa, formula, log_apa, use_implementation
from apa_mmdet.testing.memory import saved_bytes

Z = [0.0] + [
    sign * z
    for sign in (1, -1)
    for z in (1e-6, 1e-3, 0.05, 0.3, 0.7, 1, 1.5, 2, 3, 5, 8, 10, 20, 30, 44, 50)
    + (70, 88, 90, 96, 100, 500, 1e3, 1e4)
]
LAM = [0.0, 1e-8, 1e-4, 0.01, 0.5, 1.0, 10.0, 1e3]
KAPPA = [-50.0, -1.0, 0.0, 1e-3, 1.0, 1.702, 20.0, 50.0]
GRID = torch.tensor(list(itertools.product(Z, LAM, KAPPA)), dtype=torch.float64)


def truth(z, lam, kappa):
    """Return {name: (value, magnitude of its terms)}, -ln APA and kappa * z."""
    z, lam, kappa = mpmath.mpf(z), mpmath.mpf(lam), mpmath.mpf(kappa)
    u = kappa * z
    e = mpmath.exp(-u)
    if lam == 0:
        a, r, m = e, e, e * e / 2
    else:
        w = lam * e
        log1p_w, s = mpmath.log1p(w), w / (1 + w)
        a, r, m = log1p_w / lam, s / lam, (log1p_w - s) / lam**2
    # mpmath needs a billion digits to say that exp(-exp(5e5)) is zero.
    p = mpmath.exp(-a) if a < 1e5 else mpmath.mpf(0)
    values = {
        "apa": (p,) * 2,
        "aglu": (z * p,) * 2,
        "apa_x": (p * kappa * r,) * 2,
        "apa_lam": (p * m,) * 2,
        "apa_kappa": (p * z * r,) * 2,
        "aglu_x": (p + z * p * kappa * r, abs(p) + abs(z * p * kappa * r)),
        "aglu_lam": (z * p * m,) * 2,
        "aglu_kappa": (z * z * p * r,) * 2,
    }
    return values, a, u


def flushed(x, lam, kappa):
    """Return what the native operators may lose of a result: APA below 2**-125 is 0."""
    size = (1 + abs(float(x))) ** 2 * (1 + abs(float(kappa)))
    return 2**-124 * size / min(max(float(lam), 1e-4), 1)


def computed(grid, dtype):
    """Return {name: tensor} from the public functions and autograd."""
    out = {}
    for name, function in (("apa", apa), ("aglu", aglu)):
        columns = [column.to(dtype).requires_grad_() for column in grid.T]
        # A row of channels gives each point its own lam and kappa.
        value = function(columns[0][None], columns[1], columns[2])[0]
        value.sum().backward()
        out[name] = value.detach()
        for arg, column in zip(("x", "lam", "kappa"), columns):
            out[f"{name}_{arg}"] = column.grad
    return out


@pytest.fixture(scope="module")
def reference():
    """Return the grid's truth as seen by each dtype (inputs rounded to it)."""
    with mpmath.workdps(300):
        return {
            dtype: [truth(*row) for row in GRID.to(dtype).double().tolist()]
            for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        }


IMPLEMENTATIONS = [
    (torch.float64, "plain"),
    (torch.float32, "plain"),
    (torch.float32, "native"),
]


@pytest.mark.parametrize(("dtype", "implementation"), IMPLEMENTATIONS)
def test_values_and_gradients_against_mpmath(reference, dtype, implementation):
    info = torch.finfo(dtype)
    with use_implementation(implementation):
        result = computed(GRID.to(dtype).double(), dtype)
    compared = 0
    with mpmath.workdps(50):
        for i, (values, a, u) in enumerate(reference[dtype]):
            for name, (value, terms) in values.items():
                assert math.isfinite(result[name][i]), (name, GRID[i])
                if not info.tiny <= abs(value) <= info.max:
                    continue
                bound = 8 * info.eps * (1 + a) * (1 + abs(u)) * abs(terms)
                if implementation == "native":
                    bound += flushed(*GRID[i])
                error = abs(mpmath.mpf(float(result[name][i])) - value)
                assert error <= bound, (name, GRID[i], float(error / bound))
                compared += 1
    assert compared > 8000


@pytest.mark.parametrize(("dtype", "name"), IMPLEMENTATIONS)
def test_scalar_parameters_against_mpmath(reference, dtype, name):
    """The paths for one (lam, kappa) on a CPU, an element at a time for the sums."""
    info = torch.finfo(dtype)
    with mpmath.workdps(50), use_implementation(name):
        for row, (values, a, u) in zip(GRID.to(dtype), reference[dtype]):
            x, lam, kappa = (row[i : i + 1].clone().requires_grad_() for i in range(3))
            value = aglu(x, lam, kappa)
            value.backward()
            nothing = flushed(*row) if name == "native" else 0.0
            for what, tensor in (
                ("aglu", value),
                ("aglu_x", x.grad),
                ("aglu_lam", lam.grad),
                ("aglu_kappa", kappa.grad),
            ):
                true, terms = values[what]
                assert tensor.isfinite().all(), (what, row)
                if info.tiny <= abs(true) <= info.max:
                    bound = 8 * info.eps * (1 + a) * (1 + abs(u)) * abs(terms)
                    bound += nothing
                    error = abs(mpmath.mpf(tensor.item()) - true)
                    assert error <= bound, (what, row, float(error / bound))


@pytest.mark.parametrize("name", ["plain", "native"])
def test_pieces_join_up(name):
    """A tensor of several pieces equals the plain formula, in both dense layouts."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 128, 129)
    weight = torch.randn(2, 8, 128, 129)
    for lam, kappa in ((0.7, 1.2), (1.0, 50.0), (30.0, -2.0)):
        lam, kappa = torch.tensor([lam]), torch.tensor([kappa])
        value = formula.aglu(x.double(), lam.double(), kappa.double())
        d_x, d_lam, d_kappa = formula.aglu_grads(
            x.double(), lam.double(), kappa.double()
        )
        for memory_format in (torch.contiguous_format, torch.channels_last):
            leaves = [
                x.clone(memory_format=memory_format).requires_grad_(),
                lam.clone().requires_grad_(),
                kappa.clone().requires_grad_(),
            ]
            with use_implementation(name):
                out = aglu(*leaves)
            assert out.is_contiguous(memory_format=memory_format)
            (out * weight).sum().backward()
            close = dict(rtol=2e-5, atol=2e-5)
            torch.testing.assert_close(out.double(), value, **close)
            torch.testing.assert_close(leaves[0].grad.double(), d_x * weight, **close)
            for leaf, grad in zip(leaves[1:], (d_lam, d_kappa)):
                total = (grad * weight).sum()
                scale = (grad * weight).abs().sum()
                assert (leaf.grad.double() - total).abs() <= 1e-6 * scale


@pytest.mark.parametrize(
    ("dtype", "implementation"),
    [(torch.float16, "plain"), (torch.bfloat16, "plain"), (torch.bfloat16, "native")],
)
def test_half_precision_is_within_one_ulp(reference, dtype, implementation):
    with use_implementation(implementation):
        result = computed(GRID.to(dtype).double(), dtype)
    least = torch.full((len(GRID),), torch.finfo(dtype).tiny, dtype=torch.float64)
    if implementation == "native":  # what half an ulp more may be lost of
        least = torch.tensor([2**9 * flushed(*row) for row in GRID]).double()
    for name, value in result.items():
        assert value.dtype == dtype
        assert not value.isnan().any()
        exact = torch.tensor(
            [float(values[name][0]) for values, _, _ in reference[dtype]],
            dtype=torch.float64,
        ).to(dtype)
        normal = exact.abs() >= least
        below = torch.nextafter(exact, torch.full_like(exact, -math.inf))
        above = torch.nextafter(exact, torch.full_like(exact, math.inf))
        good = ((value >= below) & (value <= above))[normal].double().mean()
        assert normal.sum() > 100
        assert good >= 0.99, (name, good)


@pytest.mark.parametrize(
    "point, expected",
    [
        ((2, 1, 1), (1.09078424878, 0.0136084716734, 0.419974341614)),
        ((2, 0.5, 1.5), (1.09075211015, 0.00228361385274, 0.184986606615)),
        ((-1.5, 0.25, 0.8), (-0.104948916799, -0.322624846784, 0.363953385023)),
        ((0.7, 1e-6, 1.2), (0.884892712774, 0.0423607467242, 0.137372268521)),
    ],
)
def test_gradients_at_known_points(point, expected):
    x, lam, kappa = (
        torch.tensor([value], dtype=torch.float64, requires_grad=True)
        for value in point
    )
    aglu(x, lam, kappa).backward()
    got = torch.cat([x.grad, lam.grad, kappa.grad])
    torch.testing.assert_close(
        got, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0
    )


@pytest.mark.parametrize("function", [apa, aglu, log_apa])
@pytest.mark.parametrize("per_channel", [False, True])
def test_gradcheck(function, per_channel):
    generator = torch.Generator().manual_seed(0)
    count = 3 if per_channel else 1
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) * 3
    lam = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
    kappa = torch.randn(count, generator=generator, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, lam, kappa)]
    assert torch.autograd.gradcheck(lambda *args: function(*args, 1), inputs)


@pytest.mark.parametrize("function", [apa, aglu, log_apa])
def test_second_derivatives_are_refused(function):
    x = torch.randn(3, requires_grad=True)
    lam, kappa = torch.ones(1, requires_grad=True), torch.ones(1)
    (grad,) = torch.autograd.grad(function(x, lam, kappa).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives .* not implemented"):
        grad.square().sum().backward()


def test_special_cases_are_the_familiar_functions():
    x = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    close = dict(rtol=1e-13, atol=1e-300)
    torch.testing.assert_close(apa(x, one, one), x.sigmoid(), **close)
    torch.testing.assert_close(aglu(x, one, one), F.silu(x), **close)
    torch.testing.assert_close(log_apa(x, one, one), F.logsigmoid(x), **close)
    torch.testing.assert_close(apa(x, zero, one), (-(-x).exp()).exp(), **close)
    error = (aglu(x, one, 50 * one) - x.relu()).abs().max()
    assert error <= 0.2785 / 50


@pytest.mark.parametrize("function", [apa, aglu, log_apa])
def test_negative_lam_acts_as_zero_and_keeps_its_gradient(function):
    x = torch.randn(100, dtype=torch.float64)
    kappa = torch.ones(1, dtype=torch.float64)
    results = []
    for start in (-0.3, 0.0):
        lam = torch.tensor([start], dtype=torch.float64, requires_grad=True)
        value = function(x, lam, kappa)
        value.sum().backward()
        results.append((value.detach(), lam.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][1].abs() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("count", [1, 2])
def test_the_largest_inputs_are_finite(dtype, count):
    """AGLU is 0 or x there; both paths, the one for scalars and the plain one."""
    largest = torch.finfo(dtype).max
    for lam, kappa in itertools.product([0.0, 1e-4, 0.5, 1e3, 1e5], [1.0, 50.0, -50.0]):
        leaves = [
            torch.tensor([[largest, -largest]], dtype=dtype).requires_grad_(),
            torch.full((count,), lam).requires_grad_(),
            torch.full((count,), kappa).requires_grad_(),
        ]
        for function in (aglu, apa):
            value = function(*leaves)
            kept, dropped = (0, 1) if kappa > 0 else (1, 0)
            if function is aglu and dtype is not torch.float16:
                assert value[0, kept] == leaves[0][0, kept]
                assert value[0, dropped] == 0
            grads = torch.autograd.grad(value.sum(), leaves)
            for tensor in (value, *grads):
                assert tensor.isfinite().all(), (function, lam, kappa)
            if function is aglu and dtype is not torch.float16:
                assert grads[0][0, kept] == 1 and grads[0][0, dropped] == 0
                assert all(grad.abs().max() < 1e-3 for grad in grads[1:])


LAYOUTS = {
    "NCHW": (torch.randn(2, 3, 5, 4), None, 1),
    "channels_last": (
        torch.randn(2, 3, 5, 4).contiguous(memory_format=torch.channels_last),
        None,
        1,
    ),
    "NC": (torch.randn(7, 3), None, 1),
    "tokens": (torch.randn(2, 7, 3), None, 2),
    "NHWC": (torch.randn(2, 5, 4, 3), -1, 3),
    "sliced": (torch.randn(4, 6, 9, 4)[::2, ::2, 1::2].mT, None, 1),
    "empty": (torch.randn(0, 3, 5, 4), None, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_per_channel_parameters_in_every_layout(layout):
    x, channel_dim, axis = LAYOUTS[layout]
    x = x.detach().requires_grad_()
    lam = torch.tensor([0.0, 0.5, 2.0], requires_grad=True)
    kappa = torch.tensor([1.0, -1.0, 3.0], requires_grad=True)
    value = aglu(x, lam, kappa, channel_dim)
    weight = torch.randn(x.shape)
    (value * weight).sum().backward()
    assert value.shape == x.shape
    for channel in range(3):
        # The same through the scalar path, one channel at a time.
        part = x.detach().select(axis, channel).clone().requires_grad_()
        lam_c = lam.detach()[channel : channel + 1].clone().requires_grad_()
        kappa_c = kappa.detach()[channel : channel + 1].clone().requires_grad_()
        expected = aglu(part, lam_c, kappa_c)
        (expected * weight.select(axis, channel)).sum().backward()
        torch.testing.assert_close(value.select(axis, channel), expected)
        torch.testing.assert_close(x.grad.select(axis, channel), part.grad)
        torch.testing.assert_close(lam.grad[channel], lam_c.grad[0])
        torch.testing.assert_close(kappa.grad[channel], kappa_c.grad[0])


def test_scalar_tensor_and_untouched_input():
    x = torch.tensor(1.5)
    kept = x.clone()
    assert aglu(x, torch.ones(1), torch.ones(1)).shape == ()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_do_not_promote_the_input(dtype):
    x = torch.randn(8, dtype=dtype, requires_grad=True)
    lam, kappa = torch.ones(1, requires_grad=True), torch.ones(1)
    value = aglu(x, lam, kappa)
    value.sum().backward()
    assert value.dtype == x.grad.dtype == dtype
    assert lam.grad.dtype == torch.float32


def test_parameter_gradients_accumulate_in_float32():
    x = torch.full((2**16,), 0.5, dtype=torch.float16)
    lam = torch.tensor([0.5], requires_grad=True)
    kappa = torch.ones(1)
    aglu(x, lam, kappa).sum().backward()
    one = formula.aglu_grads(x[:1].float(), lam.detach(), kappa)[1]
    torch.testing.assert_close(lam.grad, one * 2**16, rtol=1e-5, atol=0)


def test_saves_no_more_for_backward_than_silu():
    x = torch.randn(2, 16, 32, 32, requires_grad=True)
    lam, kappa = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    leaves = x, lam, kappa

    def hidden():
        return x * 2  # an activation that is not a leaf, as in a network

    silu = saved_bytes(lambda: F.silu(hidden()), leaves)
    ours = saved_bytes(lambda: aglu(hidden(), lam, kappa), leaves)
    assert silu == ours == x.numel() * 4


def test_logit_inverts_apa():
    p = torch.tensor([1e-6, 6.18e-4, 0.01, 0.5, 0.99], dtype=torch.float64)
    for lam in (0.0, 1e-12, 0.3, 1.0, 5.0):
        lam = torch.tensor(lam, dtype=torch.float64)
        kappa = torch.tensor(1.7, dtype=torch.float64)
        torch.testing.assert_close(
            formula.apa(formula.logit(p, lam, kappa), lam, kappa), p, rtol=1e-10, atol=0
        )


def test_autocast_keeps_the_input_dtype():
    x = torch.randn(4, 8, requires_grad=True)
    lam, kappa = torch.ones(1, requires_grad=True), torch.ones(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = F.linear(x, torch.eye(8))
        value = aglu(hidden, lam, kappa)
    assert hidden.dtype == value.dtype == torch.bfloat16
    value.float().sum().backward()
    assert lam.grad.isfinite().all()


def test_bad_input_says_what_is_wrong():
    ones = torch.ones(1)
    with pytest.raises(TypeError, match="x must be a floating-point tensor.*int64"):
        aglu(torch.arange(3), ones, ones)
    with pytest.raises(TypeError, match="lam must be a floating-point tensor.*float"):
        aglu(torch.randn(3), 1.0, ones)
    with pytest.raises(ValueError, match=r"kappa has shape \(4,\).*\(3,\).*axis 1"):
        aglu(torch.randn(2, 3, 5, 5), ones, torch.ones(4))
    with pytest.raises(ValueError, match="channel_dim=4 is not an axis"):
        aglu(torch.randn(2, 3, 5, 5), ones, ones, channel_dim=4)
