"""Values and gradients of apa_cross_entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apa_mmdet.ops import apa, apa_cross_entropy


@pytest.mark.parametrize("max_slope", [None, 20.0])
@pytest.mark.parametrize("start", [0.02, 0.7])
def test_gradcheck_of_cross_entropy(max_slope, start):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64) * 4
    lam = start + torch.rand(4, generator=generator, dtype=torch.float64) / 10
    kappa = torch.rand(4, generator=generator, dtype=torch.float64) + 0.5
    labels = torch.tensor([0, 3, 4, 2, 1])
    weight = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (logits, lam, kappa)]
    assert torch.autograd.gradcheck(
        lambda x, lam, kappa: apa_cross_entropy(
            x, labels, lam, kappa, weight, max_slope
        ),
        inputs,
    )


def test_cross_entropy_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(6, 5, generator=generator, dtype=torch.float64) * 5 - 2.5
    labels = torch.tensor([0, 4, 5, 2, 5, 1])
    target = F.one_hot(labels, 6)[:, :5].double()
    for lam in (0.0, 1e-6, 0.3, 1.0, 4.0):
        for kappa in (0.5, 1.0, 2.0):
            lam_t = torch.tensor([lam], dtype=torch.float64)
            kappa_t = torch.tensor([kappa], dtype=torch.float64)
            p = apa(logits, lam_t, kappa_t)
            expected = -(target * p.log() + (1 - target) * (1 - p).log())
            got = apa_cross_entropy(logits, labels, lam_t, kappa_t)
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_is_bce_with_logits_for_lam_one(dtype):
    logits = torch.tensor([[-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4]], dtype=dtype)
    ones = torch.ones(1, dtype=dtype)
    for label in range(7):
        target = F.one_hot(torch.tensor([label]), 7).to(dtype)
        x = logits.clone().requires_grad_()
        y = logits.clone().requires_grad_()
        got = apa_cross_entropy(x, torch.tensor([label]), ones, ones, max_slope=2e4)
        expected = F.binary_cross_entropy_with_logits(y, target, reduction="none")
        got.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("lam", [0.0, 1e-5, 1e-3, 1.0, 1e3])
def test_cross_entropy_of_extreme_logits_is_finite(lam):
    logits = torch.tensor([[1e4, -1e4, 0.0]] * 4, requires_grad=True)
    lam = torch.tensor([lam], requires_grad=True)
    kappa = torch.ones(1, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3])
    loss = apa_cross_entropy(logits, labels, lam, kappa, max_slope=math.exp(10))
    loss.sum().backward()
    for tensor in (loss, logits.grad, lam.grad, kappa.grad):
        assert tensor.isfinite().all()
    # A missed positive still pulls its logit up, a false positive down.
    assert logits.grad[1, 1] < 0 < logits.grad[3, 0]


def test_tangent_leaves_the_published_range_alone():
    logits = torch.linspace(-10, 10, 81, dtype=torch.float64)[:, None]
    labels = torch.zeros(81, dtype=torch.int64)
    lam, kappa = torch.zeros(1).double(), torch.ones(1).double()
    exact = apa_cross_entropy(logits, labels, lam, kappa)
    bounded = apa_cross_entropy(logits, labels, lam, kappa, max_slope=math.exp(10))
    torch.testing.assert_close(bounded, exact, rtol=1e-12, atol=0)


class WideTensors(TorchDispatchMode):
    """Counts the tensors of at least ``size`` elements that get memory of their own."""

    def __init__(self, size):
        super().__init__()
        self.size, self.made = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage().data_ptr()
            for t in tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.numel() >= self.size:
                if t.untyped_storage().data_ptr() not in given:
                    self.made.append(str(func))
        return out


def test_cross_entropy_makes_no_more_than_its_results():
    """Over 1,203 classes every further (N, C) tensor would cost as much as they do."""
    rows, classes = 200, 1203
    logits = torch.randn(rows, classes, requires_grad=True)
    labels = torch.randint(0, classes + 1, (rows,))
    lam, kappa = (torch.full((classes,), v, requires_grad=True) for v in (0.3, 1.1))
    weight = torch.rand(rows, classes)
    grad_output = torch.rand(rows, classes)
    with WideTensors(rows * classes) as wide:
        loss = apa_cross_entropy(logits, labels, lam, kappa, weight, max_slope=1e4)
        loss.backward(grad_output)
    assert len(wide.made) == 2, wide.made  # the loss and the gradient


def test_cross_entropy_in_pieces_is_that_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(200, 1203, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 1204, (200,), generator=generator)
    lam = torch.rand(1203, generator=generator, dtype=torch.float64)
    kappa = 1 + torch.rand(1203, generator=generator, dtype=torch.float64)
    results = []
    for pieces in (1, 200):
        own = [t.clone().requires_grad_() for t in (logits, lam, kappa)]
        rows = logits.shape[0] // pieces
        loss = torch.cat(
            [
                apa_cross_entropy(own[0][i : i + rows], labels[i : i + rows], *own[1:])
                for i in range(0, logits.shape[0], rows)
            ]
        )
        results.append((loss, *torch.autograd.grad(loss.square().sum(), own)))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_bad_input_says_what_is_wrong():
    ones = torch.ones(1)
    with pytest.raises(ValueError, match=r"logits has shape \(2, 3\) and labels"):
        apa_cross_entropy(torch.randn(2, 3), torch.zeros(3).long(), ones, ones)
    x, labels = torch.randn(2, 3), torch.zeros(2).long()
    with pytest.raises(ValueError, match="max_slope=0"):
        apa_cross_entropy(x, labels, ones, ones, max_slope=0)
    with pytest.raises(ValueError, match=r"weight has shape \(2,\), .* \(2, 3\)"):
        apa_cross_entropy(x, labels, ones, ones, torch.ones(2))
    with pytest.raises(TypeError, match="labels is torch.int32"):
        apa_cross_entropy(x, labels.int(), ones, ones)
    with pytest.raises(ValueError, match="labels is on meta and logits on cpu"):
        apa_cross_entropy(x, labels.to("meta"), ones, ones)
