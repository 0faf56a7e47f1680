"""Calibrations and the fractal dimension against direct transcriptions in numpy."""

import math

import numpy as np
import pytest
import torch

from apa_mmdet.models import APALoss, EQLV2BoxLoss
from apa_mmdet.models.calibration import (
    FRACAL,
    NORCAL,
    ClassStatistics,
    LogitAdjustment,
    PostCompensation,
    fractal_dimension,
)
from apa_mmdet.models.calibration.names import build_calibrations

C = 7


# ------------------------------------------------------------------ fractal dimension


def slow_dimension(centers):
    """Count the cells of each grid one by one, and fit the line."""
    if len(centers) < 4:
        return 1.0
    grids, counts = [], []
    for grid in range(1, 65):
        if grid * grid > len(centers):
            break
        cells = set()
        for x, y in centers:
            cells.add((min(int(x * grid), grid - 1), min(int(y * grid), grid - 1)))
        grids.append(math.log(grid))
        counts.append(math.log(len(cells)))
    return max(np.polyfit(grids, counts, 1)[0], 1.0)


def test_dimension_equals_a_slow_computation():
    rng = np.random.default_rng(0)
    sizes = [0, 1, 3, 4, 8, 9, 10, 500, 5000]
    centers = [rng.random((n, 2)) for n in sizes]
    centers += [rng.beta(9, 2, (300, 2)), np.c_[rng.random(400), np.full(400, 0.5)]]
    centers += [np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])]
    labels = np.repeat(np.arange(len(centers)), [len(each) for each in centers])
    order = rng.permutation(len(labels))
    dimension = fractal_dimension(
        labels[order], np.concatenate(centers)[order], len(centers) + 1
    )
    expected = [*map(slow_dimension, centers), 1.0]
    np.testing.assert_allclose(dimension, expected, rtol=1e-10)


def test_dimension_of_a_plane_a_line_and_a_point():
    steps = (np.arange(64) + 0.5) / 64
    plane = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    line = np.tile(np.c_[steps, steps], (64, 1))
    point = np.full((4096, 2), 0.3)
    labels = np.repeat([0, 1, 2], 4096)
    dimension = fractal_dimension(labels, np.concatenate([plane, line, point]), 3)
    np.testing.assert_allclose(dimension, [2, 1, 1], rtol=1e-12)


# ------------------------------------------------------------------------ calibrations


@pytest.fixture
def statistics():
    """Statistics of seven classes, from frequent to rare."""
    statistics = ClassStatistics(C)
    statistics.set(
        torch.tensor([900, 500, 120, 60, 20, 5, 1]),
        torch.tensor([4000, 800, 130, 300, 20, 9, 1]),
        1000,
        torch.tensor([1.9, 1.7, 1.2, 1.5, 1.05, 1.0, 1.0]),
    )
    return statistics


@pytest.fixture
def logits():
    """Logits of 50 proposals for seven classes and one more column."""
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(50, C + 1, generator=generator)


def arrays(statistics):
    return (
        statistics.image_counts.double().numpy(),
        statistics.box_counts.double().numpy(),
        float(statistics.num_images),
        statistics.fractal_dimension.double().numpy(),
    )


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def torch_softmax(z):
    return z.softmax(dim=1)


def apa(z, lam, kappa):
    return np.exp(-np.log1p(lam * np.exp(-kappa * z)) / lam)


def test_fracal_on_softmax(statistics, logits):
    images, _, total, dimension = arrays(statistics)
    z = logits.double().numpy()
    expected = np.zeros_like(z)
    for n in range(len(z)):
        row = z[n].copy()
        for c in range(C):
            row[c] = row[c] - math.log10(images[c] / total) - math.log10(C)
        row = softmax(row[None])[0]
        for c in range(C):
            row[c] = row[c] / dimension[c] ** 2
        expected[n] = row / row.sum()
    scores = FRACAL()(logits, torch_softmax, statistics, True)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize(("lam", "kappa"), [(1.0, 1.0), (0.2, 1.4)])
def test_fracal_on_sigmoid_and_apa(statistics, logits, lam, kappa):
    images, _, total, dimension = arrays(statistics)
    loss = APALoss(C, lam=lam, kappa=kappa, learnable="class")
    lams, kappas = np.full(C, lam), np.full(C, kappa)
    if lam != 1:
        lams += np.arange(C) / 10
        loss.lambda_param.data = torch.tensor(lams, dtype=torch.float32)
    z = logits[:, :C].double().numpy()
    weight = dimension**1.5 / (dimension**1.5).sum()
    shift = -(np.log2(images / total) + np.log2(weight) + 2 * np.log2(C))
    expected = apa(z, lams, kappas) * apa(z + shift, lams, kappas)
    with torch.no_grad():
        scores = FRACAL(base=2, power=1.5)(
            logits[:, :C], loss.get_activation, statistics, False
        )
    assert scores.shape == (50, C + 1) and not scores[:, C].any()
    np.testing.assert_allclose(scores[:, :C].numpy(), expected, rtol=2e-4, atol=1e-12)


def test_norcal(statistics, logits):
    images, *_ = arrays(statistics)
    z = logits.double().numpy()
    scores = softmax(z)
    scores[:, :C] /= images**0.7
    expected = scores / scores.sum(axis=1, keepdims=True)
    rule = NORCAL(gamma=0.7)
    actual = rule(logits, torch_softmax, statistics, True)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-5)

    # For the sigmoid, normalising with the complement is a shift of the logit.
    sigmoid = APALoss(C, lam=1.0)
    z = z[:, :C]
    actual = rule(logits[:, :C], sigmoid.get_activation, statistics, False)
    expected = 1 / (1 + np.exp(-(z - 0.7 * np.log(images))))
    np.testing.assert_allclose(actual[:, :C].numpy(), expected, rtol=1e-5)
    gumbel = APALoss(C, lam=0.0)
    actual = rule(logits[:, :C], gumbel.get_activation, statistics, False)
    p = np.exp(-np.exp(-z))
    q = p / images**0.7
    np.testing.assert_allclose(actual[:, :C], q / (q + 1 - p), rtol=1e-4, atol=1e-37)


def test_logit_adjustment(statistics, logits):
    _, boxes, *_ = arrays(statistics)
    prior = boxes / boxes.sum()
    z = logits.double().numpy()
    shifted = z.copy()
    shifted[:, :C] -= 0.5 * np.log(prior)
    rule = LogitAdjustment(tau=0.5)
    actual = rule(logits, torch_softmax, statistics, True).numpy()
    # Without the background, the published rule; the background keeps its logit.
    classes = actual[:, :C] / actual[:, :C].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classes, softmax(shifted[:, :C]), rtol=2e-5)
    shifted[:, :C] -= 0.5 * math.log(C)
    np.testing.assert_allclose(actual, softmax(shifted), rtol=2e-5)
    loss = APALoss(C, lam=0.3, kappa=1.2)
    actual = rule(logits[:, :C], loss.get_activation, statistics, False)
    expected = apa(shifted[:, :C], 0.3, 1.2)
    np.testing.assert_allclose(actual[:, :C].numpy(), expected, rtol=1e-4)


def test_post_compensation(statistics, logits):
    _, boxes, *_ = arrays(statistics)
    shifted = logits.double().numpy()
    shifted[:, :C] += np.log((boxes.sum() - boxes) / boxes)
    actual = PostCompensation()(logits, torch_softmax, statistics, True).numpy()
    np.testing.assert_allclose(actual, softmax(shifted), rtol=2e-5)
    statistics.box_counts[:6] = 0  # the last class has everything
    scores = PostCompensation(min_images=1)(logits, torch_softmax, statistics, True)
    assert scores.isfinite().all()


@pytest.mark.parametrize("rule", [FRACAL(power=0), NORCAL(), LogitAdjustment()])
def test_equally_frequent_classes_keep_their_order(rule, logits):
    statistics = ClassStatistics(C)
    counts = torch.full((C,), 100)
    statistics.set(counts, counts, 100 * C, torch.full((C,), 1.5))
    scores = rule(logits, torch_softmax, statistics, True)
    order = logits[:, :C].argsort(dim=1)
    assert torch.equal(scores[:, :C].argsort(dim=1), order)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(50))
    if not isinstance(rule, NORCAL):  # its divisor is the same, but not 1
        torch.testing.assert_close(scores, logits.softmax(dim=1))


@pytest.mark.parametrize("rule", [FRACAL(), NORCAL(), LogitAdjustment()])
def test_independent_scores_keep_the_order_within_a_class(rule, statistics):
    """So Fixed AP, which compares only within a class, does not change."""
    logits = torch.linspace(-4, 4, 200)[:, None].repeat(1, C)
    loss = APALoss(C, lam=0.4, kappa=1.1)
    scores = rule(logits, loss.get_activation, statistics, False)[:, :C]
    assert (scores.diff(dim=0) > 0).all()


def test_objectness_stays_with_losses_that_have_it(statistics, logits):
    """Seesaw's last two logits and EQLv2's last one are not shifted."""
    from mmdet.models.losses import SeesawLoss

    seesaw = SeesawLoss(num_classes=C)
    logits = torch.cat([logits, logits[:, :1] + 1], dim=1)
    rule = LogitAdjustment()
    scores = rule(logits, seesaw.get_activation, statistics, True)
    plain = seesaw.get_activation(logits)
    torch.testing.assert_close(scores[:, C], plain[:, C])
    _, boxes, *_ = arrays(statistics)
    classes = softmax(logits[:, :C].double().numpy() - np.log(boxes))
    foreground = logits[:, C:].double().softmax(dim=1)[:, :1].numpy()
    np.testing.assert_allclose(scores[:, :C], classes * foreground, rtol=2e-5)
    eqlv2 = EQLV2BoxLoss(num_classes=C)
    scores = FRACAL()(logits[:, : C + 1], eqlv2.get_activation, statistics, False)
    plain = eqlv2.get_activation(logits[:, : C + 1])
    torch.testing.assert_close(scores[:, C], plain[:, C])
    assert (scores[:, :C] < plain[:, :C]).all()


def test_half_precision_logits(statistics, logits):
    half = logits.half()
    for rule in (FRACAL(), NORCAL(), LogitAdjustment()):
        scores = rule(half, torch_softmax, statistics, True)
        assert scores.dtype == torch.float32
        expected = rule(half.float(), torch_softmax, statistics, True)
        assert torch.equal(scores, expected)


# ------------------------------------------------------------- statistics and configs


def test_a_class_without_boxes(statistics, logits):
    statistics.image_counts[3] = statistics.box_counts[3] = 0
    with pytest.raises(ValueError, match=r"1 of 7 .* label 3 .*FRACAL:min_images=1"):
        FRACAL().check(statistics)
    one = ClassStatistics(C)
    one.load_state_dict(statistics.state_dict())
    one.image_counts[3] = one.box_counts[3] = 1
    for rule_type in (FRACAL, NORCAL, LogitAdjustment):
        rule = rule_type(min_images=1)
        rule.check(statistics)
        scores = rule(logits, torch_softmax, statistics, True)
        assert torch.equal(scores, rule(logits, torch_softmax, one, True))


def test_statistics_in_state_dicts(statistics):
    fresh = ClassStatistics(C)
    with pytest.raises(RuntimeError, match=r"class counts.*--read-counts"):
        fresh.init_weights()
    fresh.load_state_dict({}, strict=True)
    with pytest.raises(RuntimeError, match="class counts"):
        fresh.require_counts()
    fresh.load_state_dict(statistics.state_dict(), strict=True)
    fresh.require_counts()
    for name, buffer in statistics.named_buffers():
        assert torch.equal(getattr(fresh, name), buffer), name
    assert fresh.half().num_images == 1000  # half precision would round the counts
    with pytest.raises(ValueError, match=r"3 classes.*num_classes=7"):
        counts = torch.ones(3, dtype=torch.int64)
        fresh.set(counts, counts, 3, torch.ones(3))


def test_names_of_calibrations():
    rules = build_calibrations(
        ["none", "FRACAL", "NORCAL:gamma=0.5", dict(type="LogitAdjustment", tau=2)]
    )
    assert [*rules] == ["none", "FRACAL", "NORCAL:gamma=0.5", "LogitAdjustment:tau=2"]
    assert rules["none"] is None
    assert rules["NORCAL:gamma=0.5"].gamma == 0.5
    assert rules["LogitAdjustment:tau=2"].tau == 2
    assert [*build_calibrations(dict(type="mmdet.FRACAL", base=2))] == ["FRACAL:base=2"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("FRACTAL", "type='FRACTAL', expected one of FRACAL, LogitAdjustment, NORCAL"),
        (dict(power=2), "type=None"),
        (dict(type="IoULoss"), "type='IoULoss'"),
        (
            dict(type="NORCAL", gama=1),
            "NORCAL: unknown argument 'gama', expected gamma",
        ),
        (
            dict(type="NORCAL", gamma=-1),
            "NORCAL: gamma=-1, expected a finite number >=",
        ),
        (dict(type="NORCAL", gamma="1"), "NORCAL: gamma='1', expected"),
        (dict(type="FRACAL", base=1), "FRACAL: base=1, expected a finite number > 1"),
        (dict(type="FRACAL", power=math.nan), "FRACAL: power=nan, expected"),
        (dict(type="FRACAL", min_images=-1), "FRACAL: min_images=-1, expected"),
        ("NORCAL:gamma", "'NORCAL:gamma': expected a name with numbers"),
        (["FRACAL", "FRACAL"], "'FRACAL' is given twice"),
        ([], "is empty"),
    ],
)
def test_wrong_calibrations(config, words):
    with pytest.raises(ValueError) as error:
        build_calibrations(config)
    assert words in str(error.value) and "\n" not in str(error.value)
