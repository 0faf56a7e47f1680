"""The head for long tails: scores of each loss, soft labels, class counts."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("mmpretrain", reason="apa_mmdet.classification needs mmpretrain")

from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import apa_mmdet.classification  # noqa: F401

C, WIDTH = 4, 6
COUNTS = torch.tensor([100, 50, 20, 5])
# Each loss with its scores in plain torch.
LOSSES = {
    "softmax": (None, lambda z: z.softmax(1)),
    "smooth": (dict(type="LabelSmoothLoss", label_smooth_val=0.1), torch.softmax),
    "focal": (dict(type="FocalLoss"), torch.sigmoid),
    "sigmoid": (dict(type="APALoss", lam=1.0), torch.sigmoid),
    "gumbel": (dict(type="APALoss", lam=0.0), lambda z: (-(-z).exp()).exp()),
    "apa": (
        dict(type="APALoss", lam=0.5, kappa=2.0, learnable="shared"),
        lambda z: (1 + 0.5 * (-2 * z).exp()) ** -2,
    ),
    "apa_per_class": (
        dict(type="APALoss", lam=0.5, kappa=2.0, learnable="class"),
        lambda z: (1 + 0.5 * (-2 * z).exp()) ** -2,
    ),
}


def head(**kwargs):
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        cfg = dict(type="LongTailClsHead", num_classes=C, in_channels=WIDTH)
        return MODELS.build(cfg | kwargs)


@pytest.fixture
def feats():
    return (torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0)),)


def samples(labels):
    return [DataSample().set_gt_label(label) for label in labels]


@pytest.mark.parametrize("name", LOSSES)
def test_scores_are_those_of_the_loss(name, feats):
    loss, scores_of = LOSSES[name]
    each = head(loss=loss)
    logits = each(feats)
    torch.testing.assert_close(logits, feats[0] @ each.fc.weight.T + each.fc.bias)
    expected = logits.softmax(1) if name == "smooth" else scores_of(logits)
    predictions = each.predict(feats, samples([0] * 5))
    found = torch.stack([sample.pred_score for sample in predictions])
    torch.testing.assert_close(found, expected)
    labels = torch.cat([sample.pred_label for sample in predictions])
    assert labels.tolist() == expected.argmax(1).tolist()
    assert len(each.predict(feats)) == 5  # without data samples


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "focal"])
def test_mixed_labels_have_the_mixed_loss(name, feats):
    """Every loss is linear in the labels, as MixUp and CutMix assume."""
    each = head(loss=LOSSES[name][0])
    first, second = [0, 1, 2, 3, 0], [1, 1, 0, 0, 3]
    losses = [each.loss(feats, samples(labels))["loss"] for labels in (first, second)]
    mixed = [
        DataSample().set_gt_score(0.3 * F.one_hot(a, C) + 0.7 * F.one_hot(b, C))
        for a, b in zip(torch.tensor(first), torch.tensor(second))
    ]
    found = each.loss(feats, mixed)["loss"]
    torch.testing.assert_close(found, 0.3 * losses[0] + 0.7 * losses[1])
    found.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in each.parameters())


@pytest.mark.parametrize("learnable", [False, True])
def test_cosine_classifier(learnable, feats):
    cosine = dict(type="CosineLinear", scale=25.0, learnable=learnable)
    each = head(predictor_cfg=cosine)
    names = {name for name, _ in each.named_parameters()}
    assert names == {"fc.weight"} | ({"fc.scale"} if learnable else set())
    if learnable:
        assert each.fc.scale.tolist() == [5.0]
        torch.nn.init.constant_(each.fc.scale, 3.0)
    x, weight = feats[0].double(), each.fc.weight.detach().double()
    logits = each(feats)
    for i in range(5):
        for c in range(C):
            cos = (x[i] @ weight[c]) / weight[c].norm() / (1 + x[i].norm())
            expected = (9 if learnable else 25) * cos
            assert logits[i, c].item() == pytest.approx(expected.item(), rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(each(feats), logits)


def test_calibrations(feats):
    logits = head()(feats)
    odds = ((COUNTS.sum() - COUNTS) / COUNTS).log()
    prior = (COUNTS / COUNTS.sum()).log()
    for rule, shift in (
        ("PostCompensation", odds),
        ("LogitAdjustment", -prior),
        (dict(type="LogitAdjustment", tau=0.5), -0.5 * prior),
        ("none", torch.zeros(C)),
    ):
        each = head(calibration=rule)
        if rule != "none":
            with pytest.raises(RuntimeError, match="class counts.*--read-counts"):
                each.predict(feats)
            with pytest.raises(RuntimeError, match="class counts.*ClassFrequencyHook"):
                each.check_class_counts()
        each.set_class_counts(COUNTS)
        each.check_class_counts()
        expected = (logits + shift).softmax(1)
        torch.testing.assert_close(each.scores(logits), expected)
    each.set_class_counts(torch.tensor([3, 0, 1, 1]))
    each.check_class_counts()
    each = head(calibration="LogitAdjustment")
    each.set_class_counts(torch.tensor([3, 0, 1, 1]))
    with pytest.raises(ValueError, match="1 of 4 classes.* label 1 .*min_images=1"):
        each.check_class_counts()


def test_a_calibrated_sigmoid_keeps_its_activation(feats):
    each = head(loss=dict(type="APALoss", lam=1.0), calibration="PostCompensation")
    each.set_class_counts(COUNTS)
    logits = each(feats)
    odds = ((COUNTS.sum() - COUNTS) / COUNTS).log()
    torch.testing.assert_close(each.scores(logits), (logits + odds).sigmoid())


def test_class_counts_are_in_checkpoints():
    each, other = head(), head()
    each.set_class_counts(COUNTS)
    other.load_state_dict(each.state_dict())
    assert torch.equal(other.class_counts, COUNTS)
    del (weights := each.state_dict())["class_counts"]  # such as of LinearClsHead
    other.load_state_dict(weights, strict=True)
    assert torch.equal(other.class_counts, COUNTS)
    with pytest.raises(ValueError, match="3 classes.*num_classes=4; set it"):
        each.set_class_counts(COUNTS[:3])


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_prior(lam):
    loss = dict(type="APALoss", lam=lam, learnable="class")
    each = head(loss=loss, prior=0.1)
    each.init_weights()
    assert 0.005 < each.fc.weight.std() < 0.02
    start = each.scores(each.fc.bias[None])
    torch.testing.assert_close(start, torch.full((1, C), 0.1))
    each = head(loss=loss, prior="frequency")
    with pytest.raises(RuntimeError, match="prior='frequency' .* class counts"):
        each.init_weights()
    each.set_class_counts(torch.tensor([60, 30, 10, 0]))
    each.init_weights()
    expected = torch.tensor([[0.6, 0.3, 0.1, 0.05]])
    torch.testing.assert_close(each.scores(each.fc.bias[None]), expected)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        (dict(num_classes=0), ValueError, "num_classes=0, expected an integer >= 1"),
        (dict(prior=0.1), TypeError, "prior=0.1 needs a loss of type 'APALoss'"),
        (dict(loss="apa", prior=1), ValueError, "prior=1, expected a probability"),
        (
            dict(loss="apa", prior=0.1, predictor_cfg=dict(type="CosineLinear")),
            ValueError,
            "CosineLinear has none",
        ),
        (
            dict(predictor_cfg=dict(type="CosineLinear", scale=-1)),
            ValueError,
            "scale=-1, expected",
        ),
        (
            dict(predictor_cfg=dict(type="CosineLinear", scale="16")),
            ValueError,
            "scale='16', expected",
        ),
        (
            dict(loss=dict(type="APALoss", num_classes=3)),
            ValueError,
            "num_classes=4 but its APALoss has num_classes=3",
        ),
        (
            dict(loss=dict(type="APALoss", rare_threshold=0.1)),
            ValueError,
            "rare_threshold=0.1",
        ),
        (dict(calibration="PC"), ValueError, "type='PC', expected one of"),
        (dict(calibration=["none", "NORCAL"]), ValueError, "expected one;"),
    ],
)
def test_wrong_arguments(kwargs, error, words):
    if kwargs.get("loss") == "apa":
        kwargs = kwargs | dict(loss=LOSSES["apa"][0])
    with pytest.raises(error) as caught:
        head(**kwargs)
    assert words in str(caught.value)


def test_scores_do_not_lose_classes_in_half_precision(feats):
    each = head(loss=dict(type="APALoss", lam=0.0), calibration="PostCompensation")
    each.set_class_counts(COUNTS)
    half = each(feats).bfloat16()
    assert each.scores(half).dtype == torch.float32
    torch.testing.assert_close(each.scores(half), each.scores(half.float()))
