"""APADetector: checkpoints, inference, other libraries' conversions, errors."""

import copy
import logging
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmcv.transforms import Compose
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.detectors import FasterRCNN
from mmdet.models.losses import AssociativeEmbeddingLoss
from mmdet.models.necks import FPN as MMDetFPN
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import get_test_pipeline_cfg, register_all_modules
from mmengine.analysis import get_model_complexity_info
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import BaseModule, revert_sync_batchnorm
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn

from apa_mmdet.conversion import convert_activations
from apa_mmdet.layers import AGLU
from apa_mmdet.testing.small_detectors import FASTER_RCNN, RETINANET, small_config


@pytest.fixture(scope="module", autouse=True)
def one_scope_and_thread():
    """With one thread, sums are taken in the same order each time."""
    register_all_modules(init_default_scope=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(base=FASTER_RCNN, converted=True, **settings):
    cfg = small_config(base, converted, **settings)
    # Resize, the second step of both.
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 96)
    return cfg


def build(base=FASTER_RCNN, converted=True, **settings):
    """Return a small detector whose every number differs from its default."""
    torch.manual_seed(0)
    model = MODELS.build(config(base, converted, **settings).model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for i, module in enumerate(activations(model)):
        nn.init.constant_(module.lambda_param, 0.5 + 0.02 * i)
        nn.init.constant_(module.kappa_param, 1 + 0.1 * i)
    return model


def activations(model):
    return [module for module in model.modules() if isinstance(module, AGLU)]


NAMES = ("lambda_param", "kappa_param")


def adaptive(names):
    return {name for name in names if name.rpartition(".")[2] in NAMES}


IMAGE = np.full((48, 64, 3), 90, np.uint8)
IMAGE[8:30, 10:40] = (200, 60, 20)
IMAGE[25:44, 35:60] = (10, 160, 220)


def predictions(model):
    """Return the model's predictions for the image."""
    cfg = config()
    steps = get_test_pipeline_cfg(cfg)
    steps[0].type = "LoadImageFromNDArray"
    item = Compose(steps)(dict(img=IMAGE, img_id=0))
    batch = {key: [value] for key, value in item.items()}
    with torch.no_grad():
        (result,) = model.predict(*model.data_preprocessor(batch, False).values())
    return result.pred_instances


def assert_equal(actual, expected):
    assert len(expected) > 1 and len(actual) == len(expected)
    for name in ("bboxes", "scores", "labels"):
        assert torch.equal(actual[name], expected[name]), name


@pytest.fixture
def log(caplog):
    """What is logged to MMEngine's current logger, which does not propagate."""
    logger = MMLogger.get_instance("test_apa_detector", log_level="INFO")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield lambda: [record.getMessage() for record in caplog.records]
    MMLogger._instance_dict.pop("test_apa_detector")


def reported(messages, what):
    """Return the keys that MMEngine reports as missing or unexpected."""
    actual = re.findall(
        rf"{what} keys? in source state_dict: (.*)", "\n".join(messages)
    )
    return {key for line in actual for key in line.split(", ")}


# ------------------------------------------------------------------------ what it is
def test_it_is_the_detector_with_two_parameters_for_each_site(log):
    model, plain = build(), build(converted=False)
    assert isinstance(model, FasterRCNN) and type(model).__name__ == "FasterRCNN"
    keys, before = list(model.state_dict()), list(plain.state_dict())
    assert [key for key in keys if key not in adaptive(keys)] == before
    report = model.conversion_report
    assert adaptive(keys) == {
        f"{site.path}.{name}" for site in report.sites for name in NAMES
    }
    # The stem, two in each of 8 blocks, the RPN, and two FCs.
    assert len(report.sites) == len(activations(model)) == 1 + 16 + 1 + 2
    assert sum(str(report) in message for message in log()) == 1


def test_base_type_may_be_a_class_and_options_reach_the_conversion():
    model = build(base_type=FasterRCNN, parts=["head"], exclude=["rpn_head"])
    assert [site.path for site in model.conversion_report.sites] == [
        "roi_head.bbox_head.relu.0",
        "roi_head.bbox_head.relu.1",
    ]


def is_in_a_second_block(module, path):
    return isinstance(module, nn.ReLU) and ".1.act" in path


@pytest.mark.parametrize("by_name", [False, True])
def test_filter_fn(by_name):
    function = is_in_a_second_block
    name = f"{function.__module__}.{function.__name__}"
    model = build(filter_fn=name if by_name else function)
    assert [site.path for site in model.conversion_report.sites] == [
        f"backbone.layer{stage}.1.act{site}" for stage in range(1, 5) for site in (1, 2)
    ]


def test_converted_directly_it_is_the_same():
    model, other = build(), build(converted=False)
    report = convert_activations(other)
    assert report == model.conversion_report
    assert names_and_types(other) == names_and_types(model)


def test_an_excluded_site_of_a_block_stays_fixed():
    model = build(exclude=["*.act2"])
    block = model.backbone.layer2[0]
    assert type(block.act1) is AGLU and type(block.act2) is nn.ReLU
    assert type(build(exclude=["backbone.layer2"]).backbone.layer2[0]) is BasicBlock


class FPN(BaseModule):
    """A user's neck that only shares its name with MMDetection's."""

    def __init__(self, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels[-1], in_channels[-1], 1)
        self.loss_extra = Penalty()

    def forward(self, inputs):
        return (*inputs[:-1], nn.functional.relu(self.conv(inputs[-1])))


class Penalty(nn.Module):
    """A user's loss, known as one by its name in the module that owns it."""

    def forward(self, x):
        return nn.functional.relu(x).mean()


class MyFPN(MMDetFPN):
    """A subclass of MMDetection's."""


def test_classes_are_known_by_their_qualified_names():
    options = dict(in_channels=[8, 16], out_channels=8, num_outs=4)
    options |= dict(add_extra_convs="on_output", relu_before_extra_convs=True)
    for neck in (MMDetFPN(**options), MyFPN(**options)):
        report = convert_activations(neck)
        assert report.sites == []
        assert "extra convolutions" in report.left[0].reason
    report = convert_activations(FPN([8]))
    assert [site.path for site in report.sites] == ["relu"]
    left = {item.path: item.reason for item in report.left}
    assert left == {"loss_extra.forward()": "it belongs to a loss"}
    (left,) = convert_activations(AssociativeEmbeddingLoss()).left
    assert left.reason == "it belongs to a loss"


# ----------------------------------------------------------------------- checkpoints
@pytest.fixture(scope="module")
def plain_checkpoint(tmp_path_factory):
    """A checkpoint of the unconverted detector, and its weights."""
    path = str(tmp_path_factory.mktemp("checkpoints") / "plain.pth")
    state = build(converted=False).state_dict()
    save_checkpoint(dict(state_dict=state, meta={}), path)
    return path, state


def check_loaded(model, state, before):
    """Every weight is the checkpoint's, every lambda and kappa what it was."""
    after = model.state_dict()
    assert set(after) == set(state) | adaptive(after)
    for key, value in after.items():
        assert torch.equal(value, (before if key in adaptive(after) else state)[key])


def test_an_unconverted_checkpoint_loads(plain_checkpoint, log):
    path, state = plain_checkpoint
    model = build()
    for param in model.parameters():
        if param.dim() > 1:
            nn.init.zeros_(param)
    before = copy.deepcopy(model.state_dict())
    load_checkpoint(model, path, map_location="cpu", logger="current")
    check_loaded(model, state, before)
    assert reported(log(), "missing") == adaptive(model.state_dict())
    assert not reported(log(), "unexpected")


@pytest.mark.parametrize("where", ["backbone", "detector"])
def test_an_unconverted_checkpoint_as_init_cfg(plain_checkpoint, log, where):
    path, state = plain_checkpoint
    init_cfg = dict(type="Pretrained", checkpoint=path)
    if where == "backbone":
        init_cfg.update(prefix="backbone.", _delete_=True)
        model = build(**{"backbone.init_cfg": init_cfg})
        part, prefix = model.backbone, "backbone."
    else:
        model = build(init_cfg=init_cfg)
        part, prefix = model, ""
    before = copy.deepcopy(part.state_dict())
    torch.manual_seed(1)
    model.init_weights()
    own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    check_loaded(part, own, before)
    assert reported(log(), "missing") == adaptive(part.state_dict())
    assert not reported(log(), "unexpected")


def test_random_initialisation_keeps_the_start():
    model = MODELS.build(config().model)
    model.init_weights()
    for module in activations(model):
        assert (module.lambda_param.item(), module.kappa_param.item()) == (1, 50)


def test_a_converted_checkpoint_loads_strictly(tmp_path):
    model, other = build(), MODELS.build(config().model).eval()
    path = str(tmp_path / "converted.pth")
    save_checkpoint(dict(state_dict=model.state_dict(), meta={}), path)
    load_checkpoint(other, path, map_location="cpu", strict=True)
    assert_equal(predictions(other), predictions(model))
    for site, own in zip(activations(other), activations(model)):
        assert site.kappa_param.item() == own.kappa_param.item()


# ------------------------------------------------------------------------- inference
@pytest.fixture(scope="module")
def converted_checkpoint(tmp_path_factory):
    """A checkpoint with its config inside, as the Runner writes it."""
    path = str(tmp_path_factory.mktemp("checkpoints") / "converted.pth")
    model = build()
    meta = dict(
        cfg=config().pretty_text,
        dataset_meta=dict(classes=("a", "b", "c"), palette=[(0, 0, 0)] * 3),
    )
    save_checkpoint(dict(state_dict=model.state_dict(), meta=meta), path)
    return path, predictions(model)


def test_predictions_depend_on_lambda_and_kappa(converted_checkpoint):
    """So the tests below would notice if these were not loaded."""
    _, expected = converted_checkpoint
    model = build()
    for module in activations(model):
        nn.init.constant_(module.kappa_param, 50)
    assert not torch.allclose(predictions(model).scores, expected.scores, rtol=1e-3)


def test_init_detector(converted_checkpoint):
    path, expected = converted_checkpoint
    cfg = config()
    model = init_detector(cfg, path, device="cpu")
    assert model.dataset_meta["classes"] == ("a", "b", "c")
    assert_equal(inference_detector(model, IMAGE).pred_instances, expected)


@pytest.mark.parametrize("source", ["config", "checkpoint"])
def test_det_inferencer(converted_checkpoint, source):
    path, expected = converted_checkpoint
    cfg = config() if source == "config" else None
    inferencer = DetInferencer(cfg, path, device="cpu", show_progress=False)
    (actual,) = inferencer(IMAGE, no_save_vis=True)["predictions"]
    for name in ("bboxes", "scores", "labels"):
        np.testing.assert_array_equal(
            np.array(actual[name], np.float32), expected[name].float().numpy()
        )


def test_tta(converted_checkpoint):
    """Its keys are the detector's, and it merges the detector's predictions."""
    path, _ = converted_checkpoint
    tta_cfg = ConfigDict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=10)
    tta = MODELS.build(
        dict(type="DetTTAModel", tta_cfg=tta_cfg, module=config().model)
    ).eval()
    load_checkpoint(tta, path, map_location="cpu", strict=True)
    batch = demo_mm_inputs(2, (3, 64, 64), num_classes=3)
    inputs, samples = batch["inputs"], batch["data_samples"]
    flipped = copy.deepcopy(samples)
    for sample in flipped:
        sample.set_metainfo(dict(flip=True, flip_direction="horizontal"))
    for sample in samples:
        sample.set_metainfo(dict(flip=False, flip_direction=None))
    views = [(inputs, samples), ([x.flip(-1) for x in inputs], flipped)]
    model = build()
    with torch.no_grad():
        actual = tta.test_step(
            dict(inputs=[i for i, _ in views], data_samples=[s for _, s in views])
        )
        views = [
            model.test_step(dict(inputs=i, data_samples=copy.deepcopy(s)))
            for i, s in views
        ]
    expected = tta.merge_preds([list(each) for each in zip(*views)])
    for one, other in zip(actual, expected):
        assert_equal(one.pred_instances, other.pred_instances)


# ----------------------------------------------------------------- other conversions
def features(model):
    torch.manual_seed(1)
    return model.extract_feat(torch.randn(2, 3, 64, 64))


def close(actual, expected, **tolerance):
    for one, other in zip(actual, expected):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("training", [False, True])
def test_sync_bn_there_and_back(training):
    model = build(**{"backbone.norm_eval": False})
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    count = sum(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    assert count == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 20
    reverted = revert_sync_batchnorm(copy.deepcopy(synced))
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in reverted.modules())
    expected = features(model.train(training))
    for other in (synced, reverted):
        assert list(other.state_dict()) == list(model.state_dict())
        assert len(activations(other)) == 20
        # Fused or not, norms round differently.
        close(features(other.train(training)), expected, rtol=1e-4, atol=1e-4)


def test_fuse_conv_bn():
    model = build()
    with torch.no_grad():
        expected = features(model)
        actual = predictions(model)
        fused = fuse_conv_bn(copy.deepcopy(model))
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
        close(features(fused), expected, rtol=1e-4, atol=1e-4)
        scores = predictions(fused).scores
    torch.testing.assert_close(scores, actual.scores, rtol=1e-4, atol=1e-4)


def test_amp():
    # On a CPU, torch's bfloat16 convolution of stride 2 has wrong gradients for a
    # single pixel, which P6 of a smaller image would be.
    batch = demo_mm_inputs(2, (3, 128, 128), num_classes=3)
    losses, dtypes = [], []
    for converted, enabled in ((True, True), (True, False), (False, True)):
        model = build(RETINANET, converted).train()
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            total, _ = model.parse_losses(model(**data, mode="loss"))
            levels, _ = model(data["inputs"], mode="tensor")
            stages = model.backbone(data["inputs"])
        dtypes.append([level.dtype for level in (*levels, *stages)])
        losses.append(total.item())
        total.backward()
        for name, param in model.named_parameters():
            if param.requires_grad:
                assert param.grad.dtype == param.dtype == torch.float32, name
                assert param.grad.isfinite().all(), name
    assert dtypes[0] == dtypes[2] != dtypes[1]
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_compiled_backbone():
    two_stages = dict(
        num_stages=2, out_indices=(0, 1), strides=(1, 2), dilations=(1, 1)
    )
    backbone = MODELS.build(
        dict(type="APADetector", base_type="ResNet", depth=18, base_channels=8)
        | two_stages
    )
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 64, 64)
    outputs, grads = [], []
    for model in (backbone, compiled):
        outputs.append(model(x))
        backbone.zero_grad()
        sum(out.square().mean() for out in outputs[-1]).backward()
        grads.append([param.grad.clone() for param in backbone.parameters()])
    torch._dynamo.reset()
    close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_flops():
    """7 for each element of a site's output, in each of its calls."""
    models = build(RETINANET), build(RETINANET, converted=False)
    data = demo_mm_inputs(1, (3, 64, 64), num_classes=3)
    data = models[0].data_preprocessor(data, False)
    elements, flops = [], []
    handles = [
        module.register_forward_hook(lambda *args: elements.append(args[-1].numel()))
        for module in activations(models[0])
    ]
    with torch.no_grad():
        models[0](data["inputs"])
    for handle in handles:
        handle.remove()
    for model in models:
        # As mmdet's get_flops.py does it.
        model.forward = partial(model.forward, data_samples=data["data_samples"])
        info = get_model_complexity_info(
            model, None, inputs=data["inputs"], show_table=False, show_arch=False
        )
        flops.append(info["flops"])
    # The stem and two in each of 8 blocks once, the head's 2 + 2 on each of 5 levels.
    assert len(elements) == 17 + 4 * 5
    assert flops[0] - flops[1] == 7 * sum(elements)


def test_deepcopied():
    model = build()
    expected = predictions(model)
    other = copy.deepcopy(model)
    assert_equal(predictions(other), expected)
    for module in activations(other):
        nn.init.constant_(module.kappa_param, 50)
    assert_equal(predictions(model), expected)
    assert not torch.equal(predictions(other).scores, expected.scores)
    assert other.conversion_report == model.conversion_report


READ_ELSEWHERE = """
import sys, torch
model, x = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    torch.save((model.extract_feat(x), type(model.rpn_head).__name__), sys.argv[2])
"""


def test_pickled(tmp_path):
    """In this process, and in one in which nothing has been converted."""
    model = build()
    x = torch.randn(1, 3, 64, 64)
    path, out = tmp_path / "model.pkl", tmp_path / "out.pkl"
    torch.save((model, x), path)
    other, _ = torch.load(path, weights_only=False)
    assert_equal(predictions(other), predictions(model))
    command = [sys.executable, "-W", "ignore", "-c", READ_ELSEWHERE, path, out]
    subprocess.run(list(map(str, command)), check=True, timeout=120)
    actual, name = torch.load(out)
    assert name == "RPNHead"
    close(actual, model.extract_feat(x))


# ------------------------------------------------------------------- frozen stages
FROZEN = {
    "resnet": dict(type="ResNet", depth=18, base_channels=8, frozen_stages=2),
    "stem": dict(type="ResNet", depth=50, base_channels=8, frozen_stages=0),
    "deep_stem": dict(type="ResNetV1d", depth=50, base_channels=8, frozen_stages=1),
    "res2net": dict(type="Res2Net", depth=50, base_channels=8, frozen_stages=1),
    "regnet": dict(type="RegNet", arch="regnetx_400mf", frozen_stages=1),
    "csp": dict(type="CSPNeXt", widen_factor=0.25, deepen_factor=0.2, frozen_stages=2),
    "swin": dict(type="SwinTransformer", embed_dims=24, frozen_stages=2),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_stages(name):
    options = dict(FROZEN[name])
    model = MODELS.build(
        dict(type="APADetector", base_type=options.pop("type"), **options)
    )

    def trainable():
        return {n for n, param in model.named_parameters() if param.requires_grad}

    own = adaptive(dict(model.named_parameters()))
    built = trainable()
    # Nothing is frozen later, once DDP and the optimizer have listed the parameters.
    model.train()
    assert trainable() == built
    assert 0 < len(own & built) < len(own)
    sites = {site.path for site in model.conversion_report.sites if site.trainable}
    assert {f"{path}.{n}" for path in sites for n in NAMES} == own & built

    # A trainable one after frozen features would make backward go through these; a
    # frozen one after trainable features would be frozen without a reason.
    checked = []

    def check(module, inputs, output):
        checked.append(inputs[0].requires_grad == output.requires_grad)
        assert module.lambda_param.requires_grad == inputs[0].requires_grad
        assert module.kappa_param.requires_grad == inputs[0].requires_grad

    for module in activations(model):
        module.register_forward_hook(check)
    sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    assert len(checked) == len(own) // 2 and all(checked)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == built


# ---------------------------------------------------------------------------- errors
def names_and_types(model):
    return [(name, type(module)) for name, module in model.named_modules()]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            dict(parts=["bakbone"]),
            ValueError,
            ["parts=", "'bakbone'", "backbone, neck"],
        ),
        (dict(exclude=["bakbone*"]), ValueError, ["exclude=", "'bakbone*'", "20"]),
        (dict(activation="SiLU"), TypeError, ["activation='SiLU'", "'AGLU', 'APA'"]),
        (dict(activation="APA"), ValueError, ["init='auto'", "APA", "init='uniform'"]),
        (
            dict(activation=dict(type="AGLU", num_parameters=8)),
            ValueError,
            ["activation", "num_parameters=8", "expected 1"],
        ),
        (dict(types=["Tanh"]), ValueError, ["types=", "'Tanh'", "ReLU, ReLU6"]),
        (dict(init="tanh"), ValueError, ["init='tanh'", "'relu'"]),
    ],
)
def test_a_wrong_option_is_named_and_changes_nothing(options, error, words):
    with pytest.raises(error) as caught:
        build(**options)
    model = build(converted=False)
    before = names_and_types(model)
    attributes = [set(vars(module)) for module in model.modules()]
    expected = predictions(model)
    with pytest.raises(error) as directly:
        convert_activations(model, **options)
    for word in words:
        assert word in str(caught.value) and word in str(directly.value)
    assert names_and_types(model) == before
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert_equal(predictions(model), expected)
    assert len(convert_activations(model).sites) == 20


def test_base_type_is_needed():
    with pytest.raises(ValueError, match="needs base_type") as caught:
        build(base_type=None)
    assert "base_type={{_base_.model.type}}" in str(caught.value)
    cfg = config(converted=False).model
    with pytest.raises(ValueError, match="needs base_type"):
        MODELS.build({**cfg, "type": "APADetector"})


@pytest.mark.parametrize("base_type", ["APADetector", "mmdet.APADetector"])
def test_a_config_that_converts_twice(base_type):
    with pytest.raises(ValueError, match="base_type='(mmdet.)?APADetector'") as caught:
        build(base_type=base_type)
    assert "inherit from it without a type" in str(caught.value)


def test_a_converted_detector_is_refused():
    model = build()
    before, expected = names_and_types(model), predictions(model)
    with pytest.raises(ValueError, match="converted already; rebuild it"):
        convert_activations(model)
    assert names_and_types(model) == before
    assert_equal(predictions(model), expected)


def test_a_converted_detector_inside_another_stays_as_it_is():
    """Its inline calls must not be routed again, to sites that are never called."""
    semi = dict(
        type="SoftTeacher",
        detector=config().model,
        semi_train_cfg=dict(freeze_teacher=True),
        semi_test_cfg=dict(predict_on="teacher"),
    )
    inside = MODELS.build(copy.deepcopy(semi))
    around = MODELS.build(
        dict(copy.deepcopy(semi), type="APADetector", base_type="SoftTeacher")
    )
    assert around.conversion_report.sites == []
    assert names_and_types(around) == names_and_types(inside)
