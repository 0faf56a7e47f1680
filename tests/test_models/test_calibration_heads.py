"""Calibrations in mmdet's RoI heads: what reaches NMS, several at a time, refusals."""

import copy

import pytest
import torch
from mmdet.models.roi_heads.bbox_heads import bbox_head, sabl_head
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from apa_mmdet.models.calibration import FRACAL, NORCAL, calibrate, check_statistics
from apa_mmdet.models.calibration.roi_head import FIELD

C = 4
COUNTS = torch.tensor([80, 30, 9, 2])
LOSSES = {
    "softmax": dict(type="CrossEntropyLoss"),
    "sigmoid": dict(type="APALoss", num_classes=C, lam=1.0),
    "APA": dict(type="APALoss", num_classes=C, lam=0.3, kappa=1.2, learnable="class"),
    "Seesaw": dict(type="SeesawLoss", num_classes=C),
    "EQLv2": dict(type="EQLV2BoxLoss", num_classes=C),
    "custom softmax": dict(type="CrossEntropyCustomLoss", num_classes=C),
    "custom sigmoid": dict(
        type="CrossEntropyCustomLoss", num_classes=C, use_sigmoid=True
    ),
}


def box_head(loss, agnostic, kind):
    if kind == "SABLHead":
        sizes = dict(cls_in_channels=8, reg_in_channels=8, cls_out_channels=16)
        sizes |= dict(reg_offset_out_channels=8, reg_cls_out_channels=8)
        sizes |= dict(num_cls_fcs=1, num_reg_fcs=0, reg_class_agnostic=True)
        coder = dict(type="BucketingBBoxCoder", num_buckets=14, scale_factor=1.7)
        return dict(type=kind, num_classes=C, bbox_coder=coder, **sizes)
    sizes = dict(in_channels=8, fc_out_channels=16, num_classes=C)
    loss = LOSSES[loss]
    return dict(type=kind, reg_class_agnostic=agnostic, loss_cls=loss, **sizes)


def roi_head(
    calibration,
    loss="softmax",
    kind="StandardRoIHead",
    masks=False,
    box="Shared2FCBBoxHead",
):
    """Return a small RoI head, with class counts if it is calibrated."""
    torch.manual_seed(0)
    stages = kind in ("CascadeRoIHead", "HybridTaskCascadeRoIHead")
    extractor = dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=7),
        out_channels=8,
        featmap_strides=[4],
    )
    nms = dict(type="nms", iou_threshold=0.5)
    test_cfg = dict(score_thr=0.01, nms=nms, max_per_img=30, mask_thr_binary=0.5)
    if calibration is not None:
        test_cfg["calibration"] = calibration
    heads = [box_head(loss, stages, box) for _ in range(3 if stages else 1)]
    cfg = dict(
        type=kind,
        bbox_roi_extractor=extractor,
        bbox_head=heads if stages else heads[0],
        test_cfg=test_cfg,
    )
    if masks:
        cfg["mask_roi_extractor"] = extractor
        cfg["mask_head"] = dict(
            type="FCNMaskHead",
            num_convs=1,
            in_channels=8,
            conv_out_channels=8,
            num_classes=C,
        )
    if stages:
        cfg |= dict(num_stages=3, stage_loss_weights=[1, 0.5, 0.25])
    head = MODELS.build(ConfigDict(cfg)).eval()
    for name, parameter in head.named_parameters():
        if "fc_cls" in name:
            parameter.data.normal_(0, 0.8)
        elif "fc_reg" in name:
            parameter.data.normal_(0, 0.05)
    if hasattr(head, "class_statistics"):
        dimension = torch.tensor([1.8, 1.4, 1.1, 1.0])
        head.class_statistics.set(COUNTS, 2 * COUNTS, 100, dimension)
    return head


def predict(head, number=20, images=2):
    """Return a head's results for noise, and the data samples."""
    generator = torch.Generator().manual_seed(1)
    features = (torch.randn(images, 8, 16, 16, generator=generator),)
    meta = dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1, 1))
    samples = [DetDataSample(metainfo=meta) for _ in range(images)]
    proposals = []
    for _ in range(images):
        corner = 30 * torch.rand(number, 2, generator=generator)
        size = 10 + 20 * torch.rand(number, 2, generator=generator)
        boxes = torch.cat([corner, corner + size], dim=1)
        proposals.append(InstanceData(bboxes=boxes))
    with torch.no_grad():
        return head.predict(features, proposals, samples, rescale=True), samples


class Recorder:
    """Records what box heads compute and what they pass to NMS."""

    def __init__(self, monkeypatch):
        self.boxes, self.scores = [], []
        for module in (bbox_head, sabl_head):
            nms = module.multiclass_nms
            monkeypatch.setattr(module, "multiclass_nms", self._record(nms))

    def _record(self, nms):
        def multiclass_nms(boxes, scores, score_thr, *args, **kwargs):
            self.boxes.append(boxes)
            self.scores.append(scores)
            self.score_thr = score_thr
            return nms(boxes, scores, score_thr, *args, **kwargs)

        return multiclass_nms

    def take(self):
        taken = torch.cat(self.boxes), torch.cat(self.scores)
        self.boxes, self.scores = [], []
        return taken


def record_logits(head):
    """Return the list to which each call of the box heads appends its logits."""
    logits = []
    heads = head.bbox_head
    for each in heads if isinstance(heads, torch.nn.ModuleList) else [heads]:
        each.register_forward_hook(lambda *call: logits.append(call[-1][0]))
    return logits


@pytest.mark.parametrize("rule", [FRACAL(), NORCAL(gamma=0.4)])
@pytest.mark.parametrize("loss", LOSSES)
def test_scores_before_nms(monkeypatch, loss, rule):
    recorder = Recorder(monkeypatch)
    predict(roi_head(None, loss))
    plain_boxes, plain = recorder.take()
    arguments = {} if isinstance(rule, FRACAL) else dict(gamma=0.4)
    head = roi_head(dict(type=type(rule).__name__, **arguments), loss)
    logits = record_logits(head)
    predict(head)
    boxes, scores = recorder.take()
    assert torch.equal(boxes, plain_boxes)
    activation = getattr(head.bbox_head.loss_cls, "get_activation", None)
    is_softmax = loss in ("softmax", "Seesaw", "custom softmax")
    expected = rule(
        torch.cat(logits),
        activation or (lambda z: z.softmax(dim=1)),
        head.class_statistics,
        is_softmax,
    )
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-7)
    assert (scores - plain).abs().max() > 0.05
    if is_softmax:
        torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(scores)))
    # A product of two scores is on another scale.
    is_product = isinstance(rule, FRACAL) and not is_softmax
    assert recorder.score_thr == (0.01**2 if is_product else 0.01)
    assert head.test_cfg.score_thr == 0.01
    # The loss's activation is its own again.
    assert "get_activation" not in vars(head.bbox_head.loss_cls)


@pytest.mark.parametrize("kind", ["CascadeRoIHead", "HybridTaskCascadeRoIHead"])
@pytest.mark.parametrize("loss", ["softmax", "APA"])
def test_a_cascade_calibrates_its_average_once(monkeypatch, kind, loss):
    recorder = Recorder(monkeypatch)
    predict(roi_head(None, loss, kind))
    plain_boxes, _ = recorder.take()
    head = roi_head("FRACAL", loss, kind)
    logits = record_logits(head)
    predict(head)
    boxes, scores = recorder.take()
    assert torch.equal(boxes, plain_boxes)
    assert len(logits) == 3
    activation = getattr(head.bbox_head[-1].loss_cls, "get_activation", None)
    expected = FRACAL()(
        sum(logits) / 3,
        activation or (lambda z: z.softmax(dim=1)),
        head.class_statistics,
        loss == "softmax",
    )
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-7)


def test_a_head_that_ignores_custom_activations(monkeypatch):
    recorder = Recorder(monkeypatch)
    head = roi_head("NORCAL:gamma=0.4", box="SABLHead")
    logits = record_logits(head)
    predict(head)
    _, scores = recorder.take()
    rule, statistics = NORCAL(gamma=0.4), head.class_statistics
    expected = rule(torch.cat(logits), lambda z: z.softmax(dim=1), statistics, True)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-7)


SEVERAL = ["none", "FRACAL", "NORCAL:gamma=0.4", dict(type="LogitAdjustment")]


@pytest.mark.parametrize(
    ("kind", "loss", "masks"),
    [
        ("StandardRoIHead", "softmax", True),
        ("StandardRoIHead", "APA", False),
        ("CascadeRoIHead", "APA", False),
    ],
)
def test_several_give_what_each_gives(kind, loss, masks):
    head = roi_head(SEVERAL, loss, kind, masks)
    calls = record_logits(head)
    results, samples = predict(head)
    assert len(calls) == (1 if kind == "StandardRoIHead" else 3)
    names = ["none", "FRACAL", "NORCAL:gamma=0.4", "LogitAdjustment"]
    kept = set()
    for name, config in zip(names, SEVERAL):
        alone, alone_samples = predict(roi_head(config, loss, kind, masks))
        assert FIELD not in alone_samples[0]
        for index, sample in enumerate(samples):
            assert [*sample.get(FIELD)] == names
            same_instances(sample.get(FIELD)[name], alone[index])
            kept.add(tuple(alone[index].scores.tolist()))
    assert len(kept) == len(names) * len(samples)
    for sample, result in zip(samples, results):
        same_instances(sample.get(FIELD)["none"], result)
    plain, _ = predict(roi_head(None, loss, kind, masks))
    for result, expected in zip(results, plain):
        same_instances(result, expected)


def same_instances(first, second):
    assert {*first.keys()} == {*second.keys()}
    assert len(first) == len(second) > 0
    for key in first.keys():
        torch.testing.assert_close(first[key], second[key], msg=key)


@pytest.mark.parametrize("masks", [False, True])
def test_images_without_proposals(masks):
    results, samples = predict(roi_head(SEVERAL, masks=masks), number=0)
    assert [len(result) for result in results] == [0, 0]
    for sample in samples:
        assert [len(each) for each in sample.get(FIELD).values()] == [0] * 4


def test_nothing_changes_without_a_calibration():
    plain, calibrated = roi_head(None), roi_head("FRACAL")
    none = roi_head("none")
    for head in (plain, plain.bbox_head, none, none.bbox_head):
        assert not {"predict", "predict_mask", "predict_by_feat"} & {*vars(head)}
    added = {*calibrated.state_dict()} - {*plain.state_dict()}
    assert {name.rpartition(".")[0] for name in added} == {"class_statistics"}
    assert type(calibrated) is type(plain)
    # An old checkpoint loads strictly, and the counts stay.
    calibrated.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(calibrated.class_statistics.image_counts, COUNTS)


def test_a_copy_is_independent():
    head = roi_head(["FRACAL", "none"], masks=True)
    (expected, *_), _ = predict(head)
    other = copy.deepcopy(head)
    (result, *_), _ = predict(other)
    same_instances(result, expected)
    other.class_statistics.image_counts.fill_(50)
    other.bbox_head.fc_cls.weight.data.mul_(-1)
    (result, *_), _ = predict(head)
    same_instances(result, expected)
    (changed, *_), _ = predict(other)
    assert not torch.equal(changed.scores, expected.scores)


def test_refused_without_counts_or_boxes():
    head = roi_head("FRACAL")
    head.class_statistics.num_images.zero_()
    with pytest.raises(RuntimeError, match="class counts.*--read-counts"):
        predict(head)
    with pytest.raises(RuntimeError, match="ClassFrequencyHook"):
        head.init_weights()
    head = roi_head("FRACAL")
    head.class_statistics.image_counts[2] = 0
    with pytest.raises(ValueError, match="1 of 4 classes have no boxes.* label 2 "):
        check_statistics(head)
    predict(roi_head("FRACAL:min_images=1"))


@pytest.mark.parametrize(
    ("kind", "calibration", "words"),
    [
        (
            "SparseRoIHead",
            "FRACAL",
            "SparseRoIHead computes scores in a way of its own",
        ),
        ("TridentRoIHead", SEVERAL, "TridentRoIHead can try only one at a time"),
    ],
)
def test_refused_heads(kind, calibration, words):
    head = MODELS.get(kind).__new__(MODELS.get(kind))
    with pytest.raises(ValueError, match=words):
        calibrate(head, calibration)


def test_a_loss_that_does_not_say_how_its_scores_relate():
    head = roi_head("FRACAL", "Seesaw")
    del head.bbox_head.loss_cls.use_sigmoid
    with pytest.raises(ValueError, match="SeesawLoss .* set its attribute use_sigmoid"):
        calibrate(head, "FRACAL")
