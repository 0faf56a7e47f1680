"""APALoss: the published rule, mmdet's interface, and its errors."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from apa_mmdet.models import APALoss
from apa_mmdet.ops import apa, use_implementation

# Classes 0 and 1 are frequent, 2 and 3 rare under the threshold.
FREQUENCY = torch.tensor([0.9, 0.5, 0.01, 0.02])


def dropping_loss(**kwargs):
    loss = APALoss(4, rare_threshold=0.05, **kwargs)
    loss.set_class_frequency(FREQUENCY)
    return loss


def gumbel_terms(logits, labels):
    p = (-(-logits).exp()).exp()
    target = F.one_hot(labels, 5)[:, :4].bool()
    return torch.where(target, -p.log(), -torch.log1p(-p))


def test_all_foreground_rare_keeps_every_background_negative():
    logits = torch.linspace(-3, 3, 16).reshape(4, 4)
    labels = torch.tensor([2, 3, 4, 4])
    kept = torch.tensor(
        [
            [1, 1, 1, 0],  # foreground: of the rare classes only its own
            [1, 1, 0, 1],
            [1, 1, 1, 1],  # background: ratio 2/2
            [1, 1, 1, 1],
        ]
    )
    expected = (gumbel_terms(logits, labels) * kept).sum() / 4
    torch.testing.assert_close(dropping_loss()(logits, labels), expected)


def test_no_rare_foreground_drops_every_rare_negative():
    logits = torch.linspace(-3, 3, 16).reshape(4, 4)
    labels = torch.tensor([0, 1, 4, 4])
    kept = torch.tensor([[1, 1, 0, 0]] * 4)
    expected = (gumbel_terms(logits, labels) * kept).sum() / 4
    torch.testing.assert_close(dropping_loss()(logits, labels), expected)


def test_background_only_drops_every_rare_negative():
    logits = torch.linspace(-3, 3, 16).reshape(4, 4)
    labels = torch.full((4,), 4)
    expected = gumbel_terms(logits, labels)[:, :2].sum() / 4
    torch.testing.assert_close(dropping_loss()(logits, labels), expected)


def test_background_negatives_are_kept_by_the_ratio():
    torch.manual_seed(0)
    count = 4000
    labels = torch.full((count,), 4)
    labels[:4] = torch.tensor([0, 2, 1, 0])  # one of four foregrounds is rare
    terms = dropping_loss(reduction="none")(torch.zeros(count, 4), labels)
    kept = (terms[4:] > 0).float().mean(0)
    assert torch.equal(kept[:2], torch.ones(2))
    torch.testing.assert_close(kept[2:], torch.full((2,), 0.25), rtol=0, atol=0.03)


def test_without_threshold_nothing_is_dropped():
    logits, labels = torch.randn(3, 4), torch.tensor([0, 2, 4])
    terms = APALoss(4, reduction="none")(logits, labels)
    torch.testing.assert_close(terms, gumbel_terms(logits, labels))


def test_sigmoid_case_is_binary_cross_entropy():
    logits, labels = torch.randn(6, 4) * 5, torch.tensor([0, 1, 2, 3, 4, 4])
    target = F.one_hot(labels, 5)[:, :4].float()
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / 6
    torch.testing.assert_close(APALoss(4, lam=1.0)(logits, labels), expected)


def test_weights_reductions_and_ignored_labels():
    logits = torch.randn(4, 4)
    labels = torch.tensor([1, 4, -1, 2])
    weight = torch.tensor([1.0, 0.5, 1.0, 0.0])
    loss = APALoss(4, loss_weight=2.0)
    rows = gumbel_terms(logits[:2], labels[:2]).sum(1)
    total = 2 * (rows[0] + 0.5 * rows[1])
    mean = loss(logits, labels, weight, avg_factor=3.0)
    torch.testing.assert_close(mean, total / 3)
    summed = loss(logits, labels, weight, reduction_override="sum")
    torch.testing.assert_close(summed, total)
    terms = loss(logits, labels, weight, reduction_override="none")
    assert terms.shape == (4, 4)
    torch.testing.assert_close(terms.sum(), total)
    assert APALoss(4)(torch.randn(0, 4), torch.zeros(0).long()) == 0


@pytest.mark.parametrize("learnable", [None, "shared", "class"])
@pytest.mark.parametrize("lam", [0.0, 1e-5, 0.5, 1.0])
def test_gradient_is_finite_for_extreme_logits(learnable, lam):
    torch.manual_seed(0)
    logits = (torch.rand(64, 4) * 2 - 1).mul(1e4).requires_grad_()
    labels = torch.randint(0, 5, (64,))
    loss = dropping_loss(lam=lam, learnable=learnable)
    value = loss(logits, labels)
    value.backward()
    assert value.isfinite()
    for grad in (logits.grad, *(p.grad for p in loss.parameters())):
        assert grad.isfinite().all()


@pytest.mark.parametrize("learnable, shape", [("shared", (1,)), ("class", (4,))])
def test_learnable_parameters(learnable, shape):
    loss = dropping_loss(lam=0.3, kappa=1.2, learnable=learnable)
    loss(torch.randn(8, 4), torch.tensor([0, 1, 2, 3, 4, 4, 4, 4])).backward()
    for name in ("lambda_param", "kappa_param"):
        param = dict(loss.named_parameters())[name]
        assert param.shape == param.grad.shape == shape
        assert param.grad.ne(0).all()
    assert set(loss.state_dict()) == {"lambda_param", "kappa_param", "class_frequency"}
    assert set(APALoss(4).state_dict()) == {"class_frequency"}


def test_amp_takes_half_precision_logits():
    logits = torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = APALoss(4, learnable="class")(logits, torch.tensor([0, 1, 2, 3, 4]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "implementation, backend, learnable",
    [
        ("native", "aot_eager", None),
        ("native", "aot_eager", "shared"),
        ("native", "aot_eager", "class"),
        ("plain", "eager", "class"),
    ],
)
def test_compiled_as_one_graph(implementation, backend, learnable):
    torch.compiler.reset()
    loss = APALoss(4, lam=0.3, learnable=learnable, rare_threshold=0.05)
    loss.class_frequency.copy_(FREQUENCY)  # unlike set_class_frequency, to be noticed
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    labels = torch.tensor([0, 1, 2, 3, 4, 4, 4, 4, -1, 4])
    weight = torch.rand(10)
    for rows, avg_factor in ((10, 3.0), (9, 2.0)):
        results = []
        for function in (compiled, loss):
            torch.manual_seed(1)  # of the negatives that are dropped
            logits = torch.linspace(-3, 3, 4 * rows).reshape(rows, 4).requires_grad_()
            with use_implementation(implementation):
                value = function(logits, labels[:rows], weight[:rows], avg_factor)
            grads = torch.autograd.grad(value, [logits, *loss.parameters()])
            results.append((value, *grads))
        for own, expected in zip(*results):
            torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("implementation", ["native", "plain"])
def test_compiled_for_a_number_of_proposals_that_is_data(implementation):
    torch.compiler.reset()
    loss = dropping_loss(learnable="class")

    def loss_of_used(logits, labels):
        used = (labels >= 0).nonzero().squeeze(1)
        return loss(logits[used], labels[used])

    logits = torch.linspace(-3, 3, 24).reshape(6, 4)
    labels = torch.tensor([0, -1, 2, 4, 1, 4])
    with (
        use_implementation(implementation),
        torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True),
    ):
        compiled = torch.compile(loss_of_used, fullgraph=True, backend="eager")
        torch.manual_seed(1)
        value = compiled(logits, labels)
        torch.manual_seed(1)
        torch.testing.assert_close(value, loss_of_used(logits, labels))


def test_missing_frequencies_are_reported_by_a_compiled_loss():
    torch.compiler.reset()
    compiled = torch.compile(APALoss(4, rare_threshold=0.05), backend="eager")
    with pytest.raises(RuntimeError, match="ClassFrequencyHook"):
        compiled(torch.randn(2, 4), torch.tensor([0, 4]))


def test_interface_of_scores_and_accuracy():
    loss = APALoss(4, lam=0.5)
    logits = torch.randn(5, 4)
    scores = loss.get_activation(logits)
    assert scores.shape == (5, 5)
    expected = apa(logits, torch.tensor([0.5]), torch.ones(1))
    torch.testing.assert_close(scores[:, :4], expected)
    assert torch.equal(scores[:, 4], torch.zeros(5))
    assert loss.get_cls_channels(4) == 4
    labels = torch.tensor([0, 1, 2, 4, 4])
    top = logits[:3].argmax(1)
    accuracy = loss.get_accuracy(logits, labels)
    assert not any("loss" in key for key in accuracy)
    torch.testing.assert_close(
        accuracy["acc_classes"].flatten()[0],
        (top == labels[:3]).float().mean() * 100,
    )


@pytest.mark.parametrize(
    "kwargs, text",
    [
        (dict(num_classes=0), "num_classes=0"),
        (dict(num_classes=4, lam=-0.1), "lam=-0.1, expected a finite value >= 0"),
        (dict(num_classes=4, lam="a"), "lam='a', expected a finite value >= 0"),
        (dict(num_classes=4, kappa=0), "kappa=0, expected a finite value > 0"),
        (dict(num_classes=4, learnable=True), "learnable=True"),
        (dict(num_classes=4, rare_threshold=10), "rare_threshold=10"),
        (dict(num_classes=4, reduction="avg"), "reduction='avg'"),
    ],
)
def test_bad_arguments(kwargs, text):
    with pytest.raises(ValueError, match=text):
        APALoss(**kwargs)


def test_wrong_number_of_classes():
    loss = APALoss(4)
    with pytest.raises(ValueError, match="box head has num_classes=80 .* has num_c"):
        loss.get_cls_channels(80)
    with pytest.raises(ValueError, match=r"have shape \(3,\).*num_classes=4"):
        loss.set_class_frequency(torch.ones(3))
    with pytest.raises(ValueError, match="shares of images"):
        loss.set_class_frequency(torch.full((4,), 12.0))


def test_missing_frequencies_are_reported_before_training():
    loss = APALoss(4, rare_threshold=0.001)
    for call in (
        loss.init_weights,
        lambda: loss(torch.randn(2, 4), torch.tensor([0, 4])),
    ):
        with pytest.raises(RuntimeError, match="ClassFrequencyHook"):
            call()
    APALoss(4).init_weights()


def roi_head(kind):
    """Return a small box-only RoI head with APALoss in every stage."""
    box_head = dict(
        type="ConvFCBBoxHead" if kind == "ConvFC" else "Shared2FCBBoxHead",
        in_channels=8,
        fc_out_channels=16,
        num_classes=4,
        reg_class_agnostic=kind != "Standard",
        loss_cls=dict(
            type="APALoss", num_classes=4, learnable="class", rare_threshold=0.05
        ),
    )
    if kind == "ConvFC":
        box_head.update(num_shared_convs=1, num_shared_fcs=1, conv_out_channels=8)
    stages = kind in ("Cascade", "HTC")
    rcnn = dict(
        assigner=dict(
            type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5
        ),
        sampler=dict(
            type="RandomSampler", num=16, pos_fraction=0.5, add_gt_as_proposals=True
        ),
        pos_weight=-1,
        debug=False,
    )
    cfg = dict(
        type={"Cascade": "CascadeRoIHead", "HTC": "HybridTaskCascadeRoIHead"}.get(
            kind, "StandardRoIHead"
        ),
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7),
            out_channels=8,
            featmap_strides=[4],
        ),
        bbox_head=[copy.deepcopy(box_head) for _ in range(2)] if stages else box_head,
        train_cfg=[rcnn, copy.deepcopy(rcnn)] if stages else rcnn,
        test_cfg=dict(
            score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=10
        ),
    )
    if stages:
        cfg.update(num_stages=2, stage_loss_weights=[1, 0.5])
    return MODELS.build(ConfigDict(cfg))


@pytest.mark.parametrize("kind", ["Standard", "ConvFC", "Cascade", "HTC"])
def test_trains_and_predicts_in_mmdets_heads(kind):
    torch.manual_seed(0)
    head = roi_head(kind)
    head.init_weights = None  # frequencies are set by hand here
    losses = [m for m in head.modules() if isinstance(m, APALoss)]
    for loss in losses:
        loss.set_class_frequency(FREQUENCY)
    features = (torch.randn(1, 8, 16, 16),)
    boxes = torch.tensor([[4.0, 4, 30, 30], [20, 20, 50, 60], [0, 30, 20, 60]])
    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1, 1)),
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([0, 2, 3])),
        ignored_instances=InstanceData(bboxes=torch.zeros(0, 4)),
    )
    proposals = InstanceData(bboxes=torch.rand(20, 2).mul(30).repeat(1, 2))
    proposals.bboxes[:, 2:] += 20
    values = head.loss(features, [copy.deepcopy(proposals)], [sample])
    total = sum(value for key, value in values.items() if "loss" in key)
    total.backward()
    assert total.isfinite()
    assert sum("loss_cls" in key for key in values) == len(losses)
    for loss in losses:
        assert loss.lambda_param.grad.isfinite().all()
    head.eval()
    with torch.no_grad():
        (result,) = head.predict(features, [proposals], [sample])
    assert len(result) and result.scores.isfinite().all()
    assert set(result.labels.tolist()) <= {0, 1, 2, 3}
    assert bbox2roi([result.bboxes]).isfinite().all()
    assert math.isfinite(float(result.scores.max()))


@pytest.mark.parametrize("learnable", [None, "class"])
def test_lam_starts_by_frequency(learnable):
    frequency = torch.tensor([0.49, 0.04, 0.001, 0.0])
    loss = APALoss(4, learnable=learnable, init="frequency")
    with pytest.raises(RuntimeError, match="init='frequency' needs the training data"):
        loss.init_weights()
    loss.set_class_frequency(frequency)
    loss.init_weights()
    expected = torch.tensor([1.0, 3.5, 5.0, 5.0])
    torch.testing.assert_close(loss.lambda_param.data, expected)
    # A fixed lam differs from what the config says, so checkpoints keep it.
    other = APALoss(4, learnable=learnable, init="frequency")
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.lambda_param, loss.lambda_param)
    logits = torch.randn(6, 4)
    assert torch.equal(other.get_activation(logits), loss.get_activation(logits))


def test_lam_by_frequency_is_a_lam_per_class():
    with pytest.raises(ValueError, match="init='frequency', expected None, or"):
        APALoss(4, learnable="shared", init="frequency")
    with pytest.raises(ValueError, match="init='Frequency', expected None, or"):
        APALoss(4, init="Frequency")


# ------------------------------------------------------------------------ soft labels

SOFT_LOSSES = [
    dict(lam=1.0),  # sigmoid
    dict(lam=0.0),  # Gumbel
    dict(lam=0.3, kappa=0.8, learnable="shared"),
    dict(lam=0.3, kappa=0.8, learnable="class"),
    dict(lam=0.0, learnable="class"),
]


def grads(loss, logits, labels):
    """The loss, and its gradients by the logits, lam and kappa."""
    loss.zero_grad()
    logits = logits.clone().requires_grad_()
    value = loss(logits, labels)
    value.backward()
    return [value.detach(), logits.grad, *(p.grad.clone() for p in loss.parameters())]


@pytest.mark.parametrize("kwargs", SOFT_LOSSES)
def test_one_hot_labels_give_the_loss_of_hard_labels(kwargs):
    loss = APALoss(4, loss_weight=2.0, **kwargs)
    # -12 is beyond where the positive loss continues along its tangent.
    logits = torch.tensor([[-12.0, 3, 0.5, -2], [9, -1, 14, 0], [0.1, 2, -14, 5]])
    labels = torch.tensor([0, 1, 2])
    expected = grads(loss, logits, labels)
    found = grads(loss, logits, F.one_hot(labels, 4).float())
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("kwargs", SOFT_LOSSES)
def test_mixed_labels_give_the_mixed_loss(kwargs):
    loss = APALoss(4, **kwargs)
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3
    first, second = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 0, 2, 3, 0])
    mixed = 0.3 * F.one_hot(first, 4) + 0.7 * F.one_hot(second, 4)
    expected = [
        0.3 * a + 0.7 * b
        for a, b in zip(grads(loss, logits, first), grads(loss, logits, second))
    ]
    for ours, theirs in zip(grads(loss, logits, mixed), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_soft_labels_of_a_sigmoid_are_those_of_binary_cross_entropy():
    logits, labels = torch.randn(5, 4) * 4, torch.rand(5, 4)
    loss = APALoss(4, lam=1.0)
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(loss(logits, labels), each.sum() / 5)
    torch.testing.assert_close(loss(logits, labels, reduction_override="none"), each)
    weight = torch.tensor([1.0, 0, 2, 0, 1])
    found = loss(logits, labels, weight, avg_factor=4)
    torch.testing.assert_close(found, (each * weight[:, None]).sum() / 4)


def test_dropping_negatives_needs_hard_labels():
    with pytest.raises(ValueError, match="rare_threshold=0.05 .* labels are soft"):
        dropping_loss()(torch.zeros(2, 4), torch.rand(2, 4))
