"""EQLV2BoxLoss compared with its paper's formulas, and in a box head."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.structures import InstanceData

from apa_mmdet.models import EQLV2BoxLoss

LABELS = torch.tensor([0, 2, 3, 3, 1, 3])  # 3 is background


def expected_steps(batches, num_classes, gamma=12, mu=0.8, alpha=4.0):
    """Yield each batch's loss, by equations 4 to 7, element by element."""
    positive = torch.zeros(num_classes, dtype=torch.float64)
    negative = torch.zeros(num_classes, dtype=torch.float64)
    ratio = torch.full((num_classes,), 100.0, dtype=torch.float64)
    for logits, labels in batches:
        total = 0.0
        for row, label in zip(logits.double(), labels.tolist()):
            for at, logit in enumerate(row):
                p = 1 / (1 + torch.exp(-logit))
                down = up = torch.tensor(1.0, dtype=torch.float64)
                if at < num_classes:
                    down = 1 / (1 + torch.exp(-gamma * (ratio[at] - mu)))
                    up = 1 + alpha * (1 - down)
                if at == label:
                    total = total - up * p.log()
                else:
                    total = total - down * (1 - p).log()
                if at < num_classes and at == label:
                    positive[at] += up * (1 - p)
                elif at < num_classes:
                    negative[at] += down * p
        ratio = positive / (negative + 1e-10)
        yield float(total / len(labels))


def test_loss_follows_the_paper():
    torch.manual_seed(0)
    loss = EQLV2BoxLoss(num_classes=3)
    batches = [(torch.randn(6, 4) * 2, LABELS.roll(shift)) for shift in range(3)]
    for (logits, labels), expected in zip(batches, expected_steps(batches, 3)):
        value = loss(logits, labels, torch.ones(6), avg_factor=6.0)
        assert value.item() == pytest.approx(expected, rel=1e-5)
    copy.deepcopy(loss)  # it raises if the loss still refers to the graph


def test_ignored_proposals_change_nothing():
    torch.manual_seed(0)
    logits = torch.randn(6, 4, requires_grad=True)
    labels = torch.tensor([0, -1, 3, 2, 1, 3])
    weight = torch.tensor([1.0, 1, 1, 0, 1, 1])
    ours, other = EQLV2BoxLoss(3), EQLV2BoxLoss(3)
    used = [0, 2, 4, 5]
    value = ours(logits, labels, weight)
    assert value.item() == other(logits[used], labels[used]).item()
    torch.testing.assert_close(ours.state_dict(), other.state_dict())
    (grad,) = torch.autograd.grad(value, logits)
    assert not grad[[1, 3]].any() and grad[used].all()
    nothing = ours(logits, torch.full((6,), -1))
    assert nothing.item() == 0 and not torch.autograd.grad(nothing, logits)[0].any()


def test_scores_are_sigmoids_times_foreground():
    logits = torch.tensor([[0.0, 2.0, -1.0, 1.0]])
    original = logits.clone()
    loss = EQLV2BoxLoss(3)
    p = logits.sigmoid()
    expected = torch.cat([p[:, :3] * (1 - p[:, 3:]), p[:, 3:]], dim=1)
    torch.testing.assert_close(loss.get_activation(logits), expected)
    assert loss.get_activation(logits.half()).dtype is torch.float32
    assert torch.equal(logits, original)
    plain = EQLV2BoxLoss(3, test_with_obj=False)
    torch.testing.assert_close(plain.get_activation(logits), p)


def test_accuracy_counts_foreground_only():
    logits = torch.eye(4)[[0, 1, 3, 0, 2, 2]] * 5
    accuracy = EQLV2BoxLoss(3).get_accuracy(logits, LABELS)
    assert float(accuracy["acc_classes"]) == pytest.approx(100 / 3)


def test_in_a_box_head():
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    head = MODELS.build(
        dict(
            type="Shared2FCBBoxHead",
            in_channels=4,
            fc_out_channels=8,
            roi_feat_size=2,
            num_classes=3,
            loss_cls=dict(type="EQLV2BoxLoss", num_classes=3),
        )
    )
    cls_score, bbox_pred = head(torch.randn(6, 4, 2, 2))
    assert cls_score.shape == (6, 4)
    losses = head.loss(
        cls_score,
        bbox_pred,
        torch.rand(6, 5),
        LABELS,
        torch.ones(6),
        torch.rand(6, 4),
        torch.ones(6, 4),
    )
    assert {"loss_cls", "acc_classes", "loss_bbox"} == set(losses)
    losses["loss_cls"].backward()
    assert head.fc_cls.weight.grad.isfinite().all()
    rois = torch.tensor([[0.0, 1, 1, 20, 20]] * 6)
    instances = head._predict_by_feat_single(
        rois, cls_score.detach(), bbox_pred.detach(), dict(img_shape=(32, 32)),
        rcnn_test_cfg=None,
    )  # fmt: skip
    assert isinstance(instances, InstanceData)
    expected = head.loss_cls.get_activation(cls_score.detach())
    torch.testing.assert_close(instances.scores, expected)


@pytest.mark.parametrize("value", [0, -1, 2.0, None])
def test_refuses_a_wrong_number_of_classes(value):
    with pytest.raises(ValueError, match="num_classes"):
        EQLV2BoxLoss(num_classes=value)


def test_refuses_another_heads_number_of_classes():
    with pytest.raises(ValueError, match="set both to the data set's number"):
        EQLV2BoxLoss(3).get_cls_channels(4)
