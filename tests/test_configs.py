"""The shipped configs: they build, and change nothing but what they are for."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper

from apa_mmdet.datasets.mini_lvis import CLASSES
from apa_mmdet.layers import AGLU
from apa_mmdet.layers.attention import APASELayer
from apa_mmdet.models import APALoss, APAResNet, CosineConv2d
from apa_mmdet.testing.configs import split_conversion

ROOT = Path(__file__).parents[1] / "configs"
# Those of the classifiers are tested in tests/test_classification.
DETECTION = ("lvis", "mini_lvis", "real", "coco", "v3det")
EVERY = sorted(
    str(path.relative_to(ROOT))
    for folder in DETECTION
    for path in ROOT.glob(f"{folder}/*.py")
)
CONVERTED = [name for name in EVERY if "APADetector" in (ROOT / name).read_text()]
CONFIGS = [name for name in EVERY if name not in CONVERTED]
LVIS = [name for name in EVERY if name.split("/")[0] in ("lvis", "mini_lvis", "real")]


def load(name):
    return Config.fromfile(ROOT / name)


def build(cfg, num_classes=5):
    """Build the config's model, with few classes for speed."""
    register_all_modules(init_default_scope=True)
    heads = cfg.model.roi_head
    boxes = heads.bbox_head if isinstance(heads.bbox_head, list) else [heads.bbox_head]
    for head in [*boxes, *(box.loss_cls for box in boxes), heads.get("mask_head", {})]:
        if "num_classes" in head:
            head.num_classes = num_classes
    return MODELS.build(cfg.model)


def differences(ours, base, path=()):
    """Return the dotted paths of values that differ between two configs."""
    if isinstance(ours, dict) and isinstance(base, dict):
        keys = {*ours, *base}
        return set().union(
            *(differences(ours.get(k), base.get(k), (*path, k)) for k in keys)
        )
    return set() if ours == base else {".".join(path)}


@pytest.mark.parametrize("config", CONFIGS)
def test_builds_and_decays_everything_but_lambda_and_kappa(config):
    cfg = load(config)
    assert cfg.custom_imports.imports == ["apa_mmdet"]
    assert cfg.optim_wrapper.clip_grad.max_norm == 35
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {
        id(param): key for key, param in model.named_parameters() if param.requires_grad
    }
    seen = 0
    for group in wrapper.optimizer.param_groups:
        for name in (names.get(id(param)) for param in group["params"]):
            if name is None:
                continue  # frozen
            if name.endswith(("lambda_param", "kappa_param")):
                assert group["weight_decay"] == 0, name
                seen += 1
            elif "swin" not in config or not re.search("norm|bias_table", name):
                assert group["weight_decay"] > 0, name
    assert seen == sum(key.endswith("a_param") for key in names.values())


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_config_only_converts_its_base(name):
    cfg = load(name)
    assert len((ROOT / name).read_text().splitlines()) <= 10
    register_all_modules(init_default_scope=True)
    base = copy.deepcopy(cfg.model)
    split_conversion(base)
    plain = MODELS.build(base)
    model = MODELS.build(cfg.model)
    assert type(model) is type(plain)
    added = [key for key in model.state_dict() if key not in plain.state_dict()]
    assert len(added) == 2 * len(model.conversion_report.sites) > 0
    assert all(key.endswith(("lambda_param", "kappa_param")) for key in added)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decays = {
        id(param): group["weight_decay"]
        for group in wrapper.optimizer.param_groups
        for param in group["params"]
    }
    for name, param in model.named_parameters():
        if name in added and param.requires_grad:
            assert decays[id(param)] == 0, name


@pytest.mark.parametrize("name", LVIS)
def test_evaluates_with_the_fast_metric_on_its_own_data(name):
    cfg = load(name)
    for split in ("val", "test"):
        evaluator, dataset = (
            cfg[f"{split}_evaluator"],
            cfg[f"{split}_dataloader"].dataset,
        )
        assert evaluator.type == "LVISFastMetric"
        has_masks = "mask_head" in cfg.model.roi_head
        assert evaluator.metric == ["bbox", "segm"][: 1 + has_masks]
        assert evaluator.ann_file == dataset.data_root + dataset.ann_file


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "r50_softmax_head",
            {
                "model.roi_head.bbox_head.loss_cls.type",
                "model.roi_head.bbox_head.loss_cls.use_sigmoid",
                "model.roi_head.bbox_head.loss_cls.num_classes",
                "model.roi_head.bbox_head.loss_cls.lam",
                "model.roi_head.bbox_head.loss_cls.learnable",
                "model.roi_head.bbox_head.loss_cls.rare_threshold",
                "model.roi_head.bbox_head.prior",  # it needs an APALoss
            },
        ),
        (
            "r50_sigmoid_head",
            {
                "model.roi_head.bbox_head.loss_cls.lam",
                "model.roi_head.bbox_head.loss_cls.learnable",
            },
        ),
        (
            "r50_seesaw_head",
            {
                "model.roi_head.bbox_head.loss_cls.type",
                "model.roi_head.bbox_head.loss_cls.p",
                "model.roi_head.bbox_head.loss_cls.q",
                "model.roi_head.bbox_head.loss_cls.lam",
                "model.roi_head.bbox_head.loss_cls.learnable",
                "model.roi_head.bbox_head.loss_cls.rare_threshold",
                "model.roi_head.bbox_head.cls_predictor_cfg",
                "model.roi_head.bbox_head.prior",
            },
        ),
        (
            "r50_eqlv2_head",
            {
                "model.roi_head.bbox_head.loss_cls.type",
                "model.roi_head.bbox_head.loss_cls.lam",
                "model.roi_head.bbox_head.loss_cls.learnable",
                "model.roi_head.bbox_head.loss_cls.rare_threshold",
                "model.roi_head.bbox_head.init_cfg",
                "model.roi_head.bbox_head.prior",
            },
        ),
        ("r50_gumbel_head", {"model.roi_head.bbox_head.loss_cls.learnable"}),
        ("r50_apa_per_class_head", {"model.roi_head.bbox_head.loss_cls.learnable"}),
        (
            "r50_relu_backbone",
            {"model.backbone.act_cfg.type", "model.backbone.act_cfg.init"},
        ),
        ("r50_apa_neck", {"model.neck.act_cfg"}),
        (
            "se_r50_relu_backbone",
            {
                "model.backbone.act_cfg.type",
                "model.backbone.act_cfg.init",
                "model.backbone.plugins",
                "model.backbone.init_cfg.checkpoint",
            },
        ),
        (
            "cbam_r50_apa",
            {"model.backbone.plugins", "model.backbone.init_cfg.checkpoint"},
        ),
    ],
)
def test_controls_differ_in_one_thing(name, expected):
    kind = "se_r50" if name.startswith(("se_", "cbam_")) else "r50"
    base = load(f"lvis/mask_rcnn_{kind}_apa.py")._cfg_dict.to_dict()
    ours = load(f"lvis/mask_rcnn_{name}.py")._cfg_dict.to_dict()
    # Other keys at the top are variables of the config.
    differing = {p for p in differences(ours, base) if p.split(".")[0] in base}
    assert differing == expected


def test_main_config_starts_close_to_relu_with_the_published_bias():
    model = build(load("lvis/mask_rcnn_r50_apa.py"))
    assert isinstance(model.backbone, APAResNet)
    assert model.backbone.layer4[2].act3.kappa_param == 50
    model.roi_head.bbox_head.loss_cls.set_class_frequency(torch.full((5,), 0.1))
    model.roi_head.bbox_head.init_weights()
    bias = model.roi_head.bbox_head.fc_cls.bias
    torch.testing.assert_close(bias, torch.full((5,), -2.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("depth, blocks", [(50, 16), (101, 33)])
def test_published_model(depth, blocks):
    cfg = load(f"lvis/mask_rcnn_se_r{depth}_apa.py")
    assert cfg.train_cfg.max_epochs == 24
    assert cfg.param_scheduler[1].milestones == [16, 22]
    rcnn = cfg.model.test_cfg.rcnn
    assert (rcnn.score_thr, rcnn.nms.iou_threshold) == (1e-4, 0.3)
    assert (rcnn.max_per_img, rcnn.mask_thr_binary) == (300, 0.4)
    assert cfg.model.backbone.init_cfg.checkpoint.startswith("pretrained/")
    model = build(cfg)
    layers = [m for m in model.backbone.modules() if isinstance(m, APASELayer)]
    assert len(layers) == blocks
    sites = [m for m in model.backbone.modules() if isinstance(m, AGLU)]
    assert len(sites) == 3 * blocks + 1
    assert all(1 <= site.kappa_param <= 1.3 for site in sites)
    loss = model.roi_head.bbox_head.loss_cls
    assert loss.learnable is None and loss.lambda_param == 0
    assert loss.rare_threshold == 0.0011
    predictor = model.roi_head.mask_head.conv_logits
    assert isinstance(predictor, CosineConv2d)
    if depth == 50:
        assert predictor.tempearture == 4.5
        assert model.roi_head.mask_head.upsample_method == "carafe"
    else:
        assert predictor.tempearture is None and predictor.temperature == 20
        assert model.roi_head.mask_head.upsample_method == "deconv"


def test_mini_lvis_has_the_classes_of_its_generator():
    cfg = load("mini_lvis/mask_rcnn_r18_apa.py")
    assert cfg.metainfo.classes == CLASSES
    heads = cfg.model.roi_head
    for head in (heads.bbox_head, heads.mask_head, heads.bbox_head.loss_cls):
        assert head.num_classes == len(CLASSES)
    assert isinstance(build(cfg).roi_head.bbox_head.loss_cls, APALoss)


def test_real_photographs():
    cfg = load("real/mask_rcnn_lite0_apa_head.py")
    heads = cfg.model.roi_head
    for head in (heads.bbox_head, heads.mask_head, heads.bbox_head.loss_cls):
        assert head.num_classes == len(cfg.metainfo.classes) == 49
    assert cfg.model.backbone.init_cfg.checkpoint.startswith("package://")
    assert [step.get("with_mask") for step in cfg.train_pipeline[:2]] == [None, True]


@pytest.mark.parametrize("kind", ["FPN", "PAFPN", "FPN_CARAFE"])
def test_necks_take_aglu(kind):
    register_all_modules(init_default_scope=True)
    channels = [8, 16, 32]
    neck = MODELS.build(
        ConfigDict(
            type=kind,
            in_channels=channels,
            out_channels=8,
            num_outs=4,
            act_cfg=dict(type="AGLU"),
        )
    )
    sites = [m for m in neck.modules() if isinstance(m, AGLU)]
    assert sites
    if kind == "FPN_CARAFE":  # its upsampling has no CPU kernel
        return
    inputs = tuple(
        torch.randn(1, c, 32 // 2**i, 32 // 2**i) for i, c in enumerate(channels)
    )
    sum(level.square().mean() for level in neck(inputs)).backward()
    for site in sites:
        assert site.lambda_param.grad.isfinite().all()
