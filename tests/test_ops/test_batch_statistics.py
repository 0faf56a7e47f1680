"""Batch statistics as constants that gradients go through, against torch's own norm."""

import pytest
import torch
import torch.nn.functional as F

from apa_mmdet.ops import extension, use_implementation
from apa_mmdet.ops.batch_statistics import through_statistics

C, EPS = 5, 1e-3
LAYOUTS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "slice": lambda x: x[:, :, ::2, 1:],
    "1x1": lambda x: x[:, :, :1, :1],
}


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def ours(x, weight, bias):
    """Normalise a map and its spatial means by the map's statistics."""
    with torch.no_grad():
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    x, weight, bias = through_statistics(x, weight, bias, mean, var, EPS)
    maps = F.batch_norm(x, mean, var, weight, bias, eps=EPS)
    means = F.batch_norm(x.mean((2, 3)), mean, var, weight, bias, eps=EPS)
    return maps, means


def torchs(x, weight, bias):
    maps = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    return maps, maps.mean((2, 3))


def results(function, given, dtype):
    own = [t if t is None else t.to(dtype).requires_grad_() for t in given]
    maps, means = function(*own)
    loss = (maps * maps.tanh()).sum() + (means.exp() * maps.shape[2]).sum()
    loss.backward()
    return [maps, means, *(t.grad for t in own if t is not None)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("affine", ["weight and bias", "weight", ""])
@pytest.mark.parametrize(
    ("dtype", "implementation", "tolerance"),
    [
        (torch.float64, "auto", 1e-12),
        (torch.float32, "plain", 1e-5),
        (torch.float32, "native", 1e-5),
        (torch.bfloat16, "native", 3e-2),
        (torch.float16, "native", 1e-2),
    ],
)
def test_equals_a_norm_in_training(layout, affine, dtype, implementation, tolerance):
    torch.manual_seed(0)
    x = LAYOUTS[layout]((2 * draw(9, C, 5, 7) + 1).to(dtype))
    given = [
        x,
        *(draw(C).to(dtype) if n in affine else None for n in ("weight", "bias")),
    ]
    expected = results(torchs, given, torch.float64)
    with use_implementation(implementation):
        found = results(ours, given, dtype)
    for one, true in zip(found, expected, strict=True):
        assert one.dtype == dtype
        atol = tolerance * true.abs().max().item()
        torch.testing.assert_close(one.double(), true, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_only_the_gradients_that_are_needed(needed):
    given = [2 * draw(2, C, 3, 4) + 1, draw(C), draw(C)]
    given[needed].requires_grad_()
    maps, means = (ours(*given), torchs(*given))
    gradients = [
        torch.autograd.grad(one.sin().sum() + other.exp().sum(), given[needed])[0]
        for one, other in (maps, means)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_are_refused(dtype):
    x = draw(2, C, 3, 4).to(dtype).requires_grad_()
    maps, _ = ours(x, None, None)
    (gradient,) = torch.autograd.grad(maps.sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        gradient.sum().backward()


def test_the_operator_is_as_torch_expects():
    extension.load()
    x, small = torch.randn(2, C, 3, 5), torch.rand(5, C)
    args = torch.randn_like(x), x, *small[:3], EPS, *small[3:]
    torch.library.opcheck(torch.ops.apa_mmdet.through_statistics_.default, args)
