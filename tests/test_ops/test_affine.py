"""affine_aglu against the same sum written out, in values and every gradient."""

import pytest
import torch

from apa_mmdet.ops import affine_aglu, aglu

N, C, H, W = 2, 6, 5, 7


def arguments(scale_dims=1, residual=True, residual_scale=True, params=1, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    small = (N, C) if scale_dims == 2 else (C,)
    found = dict(
        x=draw(N, C, H, W),
        scale=draw(*small),
        shift=draw(*small),
        lam=draw(params).abs() + 0.2,
        kappa=draw(params) + 1.5,
    )
    if residual:
        found["residual"] = draw(N, C, H, W)
    if residual and residual_scale:
        found["residual_scale"], found["residual_shift"] = draw(C), draw(C)
    return found


def written_out(x, scale, shift, lam, kappa, residual=0, residual_scale=None, **rest):
    total = scale[..., None, None] * x + shift[..., None, None]
    if residual_scale is not None:
        shift = rest["residual_shift"]
        residual = residual_scale[:, None, None] * residual + shift[:, None, None]
    return aglu(total + residual, lam, kappa)


VARIANTS = [
    dict(residual=False),
    dict(residual=False, scale_dims=2, params=C),
    dict(residual_scale=False),
    dict(residual_scale=False, scale_dims=2),
    dict(),
    dict(scale_dims=2, params=C),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_sum_written_out(variant, layout):
    tensors = arguments(**variant)
    for name in ("x", "residual"):
        if name in tensors:
            tensors[name] = tensors[name].to(memory_format=layout)
    results = []
    for function in (affine_aglu, written_out):
        own = {k: t.clone().requires_grad_() for k, t in tensors.items()}
        y = function(**own)
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        grads = torch.autograd.grad((y * weight).sum(), list(own.values()))
        results.append((y, *grads))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wanted", [["x"], ["scale"], ["residual_shift"], ["lam"]])
def test_gradients_of_some_alone(wanted):
    tensors = arguments()
    expected = None
    for function in (written_out, affine_aglu):
        own = {k: t.clone().requires_grad_(k in wanted) for k, t in tensors.items()}
        function(**own).square().sum().backward()
        grads = [own[name].grad for name in wanted]
        assert all(own[name].grad is None for name in own if name not in wanted)
        if expected is not None:
            torch.testing.assert_close(grads, expected, rtol=1e-10, atol=1e-10)
        expected = grads


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    tensors = {k: t.float() for k, t in arguments().items()}
    for name in ("x", "residual"):
        tensors[name] = tensors[name].to(dtype).requires_grad_()
    y = affine_aglu(**tensors)
    y.sum().backward()
    wide = {k: t.detach().float() for k, t in tensors.items()}
    wide["x"].requires_grad_()
    expected = written_out(**wide)
    expected.sum().backward()
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))
    assert tensors["x"].grad.dtype == tensors["residual"].grad.dtype == dtype
    torch.testing.assert_close(tensors["x"].grad, wide["x"].grad.to(dtype))


def test_keeps_the_inputs_alone():
    tensors = {k: t.requires_grad_() for k, t in arguments().items()}
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.add(t.untyped_storage().data_ptr()) or t, lambda t: t
    ):
        affine_aglu(**tensors)
    assert kept == {t.untyped_storage().data_ptr() for t in tensors.values()}


def test_empty():
    tensors = arguments(scale_dims=2)
    for name in ("x", "residual", "scale", "shift"):
        tensors[name] = tensors[name][:0].requires_grad_()
    y = affine_aglu(**tensors)
    y.sum().backward()
    assert y.shape == (0, C, H, W) and tensors["scale"].grad.shape == (0, C)


def test_second_derivatives_are_refused():
    tensors = {k: t.requires_grad_() for k, t in arguments().items()}
    (grad,) = torch.autograd.grad(
        affine_aglu(**tensors).sum(), tensors["x"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(scale=torch.ones(C + 1)), r"scale \(7,\)"),
        (dict(shift=torch.ones(N, C)), r"shift \(2, 6\)"),
        (dict(x=torch.ones(N, C)), "expected \\(N, C, H, W\\)"),
        (dict(residual=torch.ones(N, C, H, W + 1)), "residual has shape"),
        (dict(residual_shift=None), "residual_shift is None"),
        (dict(residual_scale=torch.ones(1)), r"residual_scale is \(1,\)"),
        (dict(residual=None), "residual_scale"),
        (dict(lam=torch.ones(2)), "lam has shape"),
    ],
)
def test_shapes_that_do_not_fit(changes, words):
    with pytest.raises(ValueError, match=words):
        affine_aglu(**{**arguments(), **changes})
