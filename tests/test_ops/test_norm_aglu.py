"""norm_aglu against the same written out, in values and every gradient."""

import pytest
import torch
import torch.nn.functional as F

from apa_mmdet.ops import aglu, norm_aglu, use_implementation
from apa_mmdet.testing.memory import saved_bytes

N, C, H, W = 2, 40, 9, 31  # rows of 279: full blocks, and a rest
CONSTANTS = ("mean", "var", "residual_mean", "residual_var")
LAYOUTS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "1x1": lambda x: x[:, :, :1, :1].contiguous(),
    "one image": lambda x: x[:1],
    "slice": lambda x: x[:, :, ::2, 1:],
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "empty": lambda x: x[:0],
}


def arguments(layout="NCHW", affine=True, gate=False, residual=None, params=1, seed=0):
    """Return float64 arguments; residual is None, 'plain', 'normed' or 'affine'."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def norm(affine, prefix=""):
        statistics = {f"{prefix}mean": draw(C), f"{prefix}var": draw(C).abs() + 0.1}
        if affine:
            statistics |= {f"{prefix}weight": draw(C), f"{prefix}bias": draw(C)}
        return statistics

    tensors = dict(x=LAYOUTS[layout](draw(N, C, H, W)))
    tensors |= dict(lam=draw(params).abs() + 0.2, kappa=draw(params) + 1.5)
    tensors |= norm(affine)
    if gate:
        tensors["gate"] = draw(*tensors["x"].shape[:2])
    if residual:
        tensors["residual"] = LAYOUTS[layout](draw(N, C, H, W))
    if residual in ("normed", "affine"):
        tensors |= norm(residual == "affine", "residual_")
    return tensors


def ours(eps=1e-5, residual_eps=1e-3, **tensors):
    small = dict(weight=None, bias=None) | tensors
    return norm_aglu(**small, eps=eps, residual_eps=residual_eps)


def written_out(eps=1e-5, residual_eps=1e-3, **t):
    z = F.batch_norm(
        t["x"], t["mean"], t["var"], t.get("weight"), t.get("bias"), eps=eps
    )
    if "gate" in t:
        z = z * t["gate"][:, :, None, None]
    if "residual_mean" in t:
        names = ("residual", "residual_mean", "residual_var")
        small = t.get("residual_weight"), t.get("residual_bias")
        z = z + F.batch_norm(*(t[name] for name in names), *small, eps=residual_eps)
    elif "residual" in t:
        z = z + t["residual"]
    options = t.get("negative_slope", 0.0), t.get("max_value")
    return aglu(z, t["lam"], t["kappa"], 1, *options)


def results(function, tensors, dtype, needed=None, **options):
    """Return the value and the gradients of all but the constants, by name."""
    own = {}
    for name, tensor in tensors.items():
        needs = name in needed if needed else name not in CONSTANTS
        own[name] = tensor.to(dtype).detach().requires_grad_(needs)
    y = function(**own, **options)
    weight = torch.linspace(-1, 2, max(y.numel(), 1))[: y.numel()].view_as(y)
    (y * weight).sum().backward()
    return {"y": y.detach(), **{k: t.grad for k, t in own.items() if t.requires_grad}}


def assert_same(found, expected, tolerance=4e-6):
    assert found.keys() == expected.keys()
    for name, true in expected.items():
        scale = true.abs().max().item() if true.numel() else 0
        torch.testing.assert_close(
            found[name].double(), true, rtol=tolerance, atol=tolerance * scale
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("residual", [None, "plain", "normed", "affine"])
@pytest.mark.parametrize(("params", "affine"), [(1, True), (C, True), (1, False)])
def test_equals_the_same_written_out(layout, gate, residual, params, affine):
    tensors = arguments(layout, affine, gate, residual, params)
    expected = results(written_out, tensors, torch.float64)
    assert_same(results(ours, tensors, torch.float64), expected, 1e-10)
    with use_implementation("native"):
        found = results(ours, tensors, torch.float32)
    assert_same(found, expected)
    like = torch.empty_like(tensors["x"])
    assert found["y"].stride() == found["x"].stride() == like.stride()


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("residual", [None, "affine"])
def test_slope_and_bound(layout, residual):
    tensors = arguments(layout, residual=residual)
    options = dict(negative_slope=0.1, max_value=0.8)
    expected = results(written_out, tensors, torch.float64, **options)
    with use_implementation("native"):
        assert_same(results(ours, tensors, torch.float32, **options), expected)


@pytest.mark.parametrize("residual_layout", ["NCHW", "channels_last"])
def test_residual_of_another_layout_and_dtype(residual_layout):
    tensors = arguments("channels_last", residual="affine")
    residual = LAYOUTS[residual_layout](tensors["residual"].bfloat16())
    expected = written_out(**{**tensors, "residual": residual.double()})
    own = {name: tensor.float() for name, tensor in tensors.items()}
    own["residual"] = residual.detach().requires_grad_()
    y = ours(**own)
    y.sum().backward()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert own["residual"].grad.dtype == torch.bfloat16
    assert own["residual"].grad.stride() == residual.stride()


def with_batch_statistics(function):
    """Return the function with mean and var those of x, and of the residual's norm."""

    def call(**t):
        statistics = {}
        for prefix, x in (("", t["x"]), ("residual_", t.get("residual"))):
            if f"{prefix}mean" in t:
                with torch.no_grad():
                    mean_var = torch.batch_norm_update_stats(x, None, None, 0.1)
                statistics[f"{prefix}mean"], statistics[f"{prefix}var"] = mean_var
                statistics[f"{prefix}batch_statistics"] = True
        return function(**{**t, **statistics})

    return call


def batch_norms(eps=1e-5, residual_eps=1e-3, **t):
    z = F.batch_norm(
        t["x"], None, None, t.get("weight"), t.get("bias"), training=True, eps=eps
    )
    if "gate" in t:
        z = z * t["gate"][:, :, None, None]
    if "residual" in t:
        residual = t["residual"]
        if "residual_mean" in t:
            small = t.get("residual_weight"), t.get("residual_bias")
            options = dict(training=True, eps=residual_eps)
            residual = F.batch_norm(residual, None, None, *small, **options)
        z = z + residual
    return aglu(z, t["lam"], t["kappa"], 1)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("residual", [None, "plain", "normed", "affine"])
@pytest.mark.parametrize(("params", "affine"), [(1, True), (C, True), (C, False)])
def test_batch_statistics(layout, gate, residual, params, affine):
    tensors = arguments(layout, affine, gate, residual, params)
    expected = results(batch_norms, tensors, torch.float64)
    function = with_batch_statistics(ours)
    assert_same(results(function, tensors, torch.float64), expected, 1e-10)
    with use_implementation("native"):
        found = results(function, tensors, torch.float32)
    assert_same(found, expected, 1e-3 if layout == "1x1" else 1e-5)


@pytest.mark.parametrize("needed", [["x"], ["residual"], ["weight"], ["residual_bias"]])
def test_only_needed_gradients_with_batch_statistics(needed):
    tensors = arguments(residual="affine")
    expected = results(batch_norms, tensors, torch.float64, needed)
    with use_implementation("native"):
        found = results(with_batch_statistics(ours), tensors, torch.float32, needed)
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "slice"])
def test_batch_statistics_in_half_precision(dtype, layout):
    tensors = arguments(layout)
    tensors["x"] = tensors["x"].to(dtype).double()
    expected = results(batch_norms, tensors, torch.float64)
    own = {k: t.float().requires_grad_(k not in CONSTANTS) for k, t in tensors.items()}
    own["x"] = tensors["x"].to(dtype).requires_grad_()
    y = with_batch_statistics(ours)(**own)
    weight = torch.linspace(-1, 2, y.numel()).view_as(y)
    (y * weight).sum().backward()
    assert own["x"].grad.dtype == y.dtype == dtype
    found = {"y": y.detach(), **{k: own[k].grad for k in expected if k != "y"}}
    assert_same(found, expected, 1e-2)


@pytest.mark.parametrize(
    "needed",
    [["x"], ["weight"], ["bias"], ["gate"], ["lam"], ["kappa"], ["residual"]]
    + [["residual_weight"], ["residual_bias"], ["weight", "residual_bias"]],
)
def test_only_needed_gradients(needed):
    tensors = arguments(gate=True, residual="affine")
    expected = results(written_out, tensors, torch.float64, needed)
    with use_implementation("native"):
        assert_same(results(ours, tensors, torch.float32, needed), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    tensors = {k: t.float() for k, t in arguments(residual="affine").items()}
    for name in ("x", "residual"):
        tensors[name] = tensors[name].to(dtype).requires_grad_()
    y = ours(**tensors)
    y.sum().backward()
    wide = {k: t.detach().float() for k, t in tensors.items()}
    wide["x"].requires_grad_()
    expected = written_out(**wide)
    expected.sum().backward()
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))
    assert tensors["x"].grad.dtype == tensors["residual"].grad.dtype == dtype
    torch.testing.assert_close(tensors["x"].grad, wide["x"].grad.to(dtype))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_equals_a_batch_norm_in_evaluation(affine, momentum):
    norm = torch.nn.BatchNorm2d(C, affine=affine, momentum=momentum).double()
    norm(torch.randn(4, C, 5, 5, dtype=torch.float64) * 3 + 1)
    norm.eval()
    x = torch.randn(N, C, H, W, dtype=torch.float64)
    lam, kappa = torch.tensor([0.7]), torch.tensor([1.3])
    expected = aglu(norm(x), lam.double(), kappa.double())
    small = norm.weight, norm.bias, norm.running_mean, norm.running_var
    small = (None if t is None else t.detach().float() for t in small)
    y = norm_aglu(x.float(), *small, norm.eps, lam, kappa)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def test_keeps_only_its_inputs():
    tensors = arguments(gate=True, residual="affine")
    tensors = {
        k: t.float().requires_grad_(k not in CONSTANTS) for k, t in tensors.items()
    }
    assert saved_bytes(lambda: ours(**tensors), tensors.values()) == 0
    inputs = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
    assert saved_bytes(lambda: ours(**tensors)) == inputs


def test_a_mean_far_from_zero_costs_no_accuracy():
    tensors = arguments()
    tensors["x"] = (tensors["x"] + 300).float().double()
    tensors["mean"] = (tensors["mean"] + 300).float().double()
    expected = results(written_out, tensors, torch.float64)
    with use_implementation("native"):
        assert_same(results(ours, tensors, torch.float32), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_are_refused(dtype):
    tensors = {
        k: t.to(dtype).requires_grad_(k not in CONSTANTS)
        for k, t in arguments().items()
    }
    (grad,) = torch.autograd.grad(
        ours(**tensors).sum(), tensors["x"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(weight=torch.ones(C + 1)), r"weight has shape \(41,\), expected \(40,\)"),
        (dict(mean=torch.ones(1)), r"mean has shape \(1,\)"),
        (dict(x=torch.ones(N, C)), "expected \\(N, C, H, W\\)"),
        (dict(gate=torch.ones(C)), r"gate has shape \(40,\), expected \(2, 40\)"),
        (dict(residual=torch.ones(N, C, H, W + 1)), "residual has shape"),
        (dict(residual_var=None), "residual_mean and residual_var go together"),
        (dict(residual=None), "residual is None"),
        (dict(residual_mean=None, residual_var=None), "residual_mean is None"),
        (dict(residual_bias=torch.ones(1)), r"residual_bias has shape \(1,\)"),
        (dict(lam=torch.ones(2)), "lam has shape"),
    ],
)
def test_shapes_that_do_not_fit(changes, words):
    tensors = {k: t.float() for k, t in arguments(residual="affine").items()}
    with pytest.raises(ValueError, match=words):
        ours(**{**tensors, **changes})


def test_integers_are_refused():
    tensors = {k: t.float() for k, t in arguments().items()}
    with pytest.raises(TypeError, match="weight must be a floating-point tensor"):
        ours(**{**tensors, "weight": torch.ones(C, dtype=torch.int64)})


def test_statistics_take_no_gradient():
    tensors = {k: t.float() for k, t in arguments().items()}
    with pytest.raises(ValueError, match="var requires a gradient"):
        ours(**{**tensors, "var": tensors["var"].requires_grad_()})
