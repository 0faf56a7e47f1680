"""The configs of long-tailed data sets have the published recipes' numbers.

MMPretrain is not needed: the configs are only read.
"""

from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2] / "configs"
FOLDERS = ("cifar100_lt", "imagenet_lt", "inaturalist2018", "places_lt", "clothing_lt")
NAMES = [
    f"{folder}/{path.stem}"
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.py"))
]
SGD = dict(type="SGD", momentum=0.9)
MIXUP = dict(type="Mixup", alpha=0.2)
CUTMIX = dict(type="CutMix", alpha=1.0)
COSINE = dict(type="CosineLinear", scale=16.0)
SOFTMAX, SMOOTH = "CrossEntropyLoss", "LabelSmoothLoss"
# Of each main config: batch size in all, optimizer, epochs of warm-up and in all, batch
# augmentations, augmentations, classifier, loss, calibration.
RECIPES = {
    "cifar100_lt/se_r32_apa": (
        512,
        dict(lr=0.2, weight_decay=1e-3),
        (3, 500),
        MIXUP,
        ["RandomCrop", "RandomFlip", "CIFARAutoAugment", "Cutout"],
        COSINE,
        SOFTMAX,
        "PostCompensation",
    ),
    "imagenet_lt/se_r50_apa": (
        4 * 64,
        dict(lr=0.2, weight_decay=1e-4),
        (0, 200),
        MIXUP,
        ["RandomResizedCrop", "RandomFlip", "AutoAugment"],
        COSINE,
        SOFTMAX,
        "PostCompensation",
    ),
    "inaturalist2018/se_r50_apa": (
        4 * 256,
        dict(lr=0.5, weight_decay=1e-4),
        (5, 500),
        [MIXUP, CUTMIX],
        [
            "RandomResizedCrop",
            "RandomFlip",
            "NumpyToPIL",
            "torchvision/RandAugment",
            "PILToNumpy",
            "RandomErasing",
        ],
        COSINE,
        SMOOTH,
        None,
    ),
    "places_lt/se_r152_apa": (
        256,
        dict(lr=0.1, weight_decay=5e-5),
        (0, 40),
        [MIXUP, CUTMIX],
        ["RandomResizedCrop", "RandomFlip", "AutoAugment"],
        dict(type="CosineLinear", scale=25.0, learnable=True),
        SMOOTH,
        "PostCompensation",
    ),
}
GPUS = dict(cifar100_lt=1, imagenet_lt=4, inaturalist2018=4, places_lt=4)


def load(name):
    return Config.fromfile(ROOT / f"{name}.py", import_custom_modules=False)


def step(pipeline, kind):
    (found,) = (each for each in pipeline if each["type"] == kind)
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    batch, optimizer, epochs, augments, pipeline, predictor, loss, rule = RECIPES[name]
    cfg = load(name)
    loader = cfg.train_dataloader
    assert loader.batch_size * GPUS[name.split("/")[0]] == batch
    assert cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.optim_wrapper.optimizer == SGD | optimizer
    assert "clip_grad" not in cfg.optim_wrapper
    assert cfg.train_cfg.max_epochs == epochs[1]
    *warm_up, cosine = cfg.param_scheduler
    assert (cosine.type, cosine.T_max) == ("CosineAnnealingLR", epochs[1] - epochs[0])
    assert (cosine.begin, cosine.end) == epochs
    # test_imagenet_recipe.py compares such a pair with torch's schedulers.
    assert [each.end for each in warm_up] == [epochs[0] + 1] * (epochs[0] > 0)
    assert cfg.model.train_cfg.augments == augments
    assert [each.type for each in cfg.train_pipeline if "Load" not in each.type] == [
        *pipeline,
        "PackInputs",
    ]
    head = cfg.model.head
    assert head.type == "LongTailClsHead" and head.predictor_cfg == predictor
    assert (head.loss.type, head.calibration) == (loss, rule)
    assert head.loss.get("label_smooth_val") == (0.1 if loss == SMOOTH else None)
    assert ("Amp" in cfg.optim_wrapper.type) == name.startswith("imagenet_lt")


@pytest.mark.parametrize("name", NAMES)
def test_what_all_have_in_common(name):
    cfg = load(name)
    assert len((ROOT / f"{name}.py").read_text().splitlines()) <= 10
    assert cfg.custom_imports.imports == ["apa_mmdet.classification"]
    assert cfg.custom_hooks[0] == dict(type="ClassFrequencyHook")
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    for key in ("lambda_param", "kappa_param"):
        assert keys[key] == dict(decay_mult=0.0)
    for split in ("val", "test"):
        assert cfg[f"{split}_evaluator"] == dict(type="LongTailAccuracy")
    head = cfg.model.head
    assert head.num_classes == cfg.num_classes == cfg.data_preprocessor.num_classes


def test_cifar100_lt():
    cfg = load("cifar100_lt/se_r32_apa")
    dataset = cfg.train_dataloader.dataset
    assert (dataset.type, dataset.rule, dataset.ratio) == (
        "LongTailDataset",
        "exponential",
        100,
    )
    assert dataset.dataset.type == "CIFAR100" and dataset.dataset.split == "train"
    assert cfg.test_dataloader.dataset.type == "CIFAR100"
    backbone = cfg.model.backbone
    assert backbone == dict(type="SEResNetCIFAR", depth=32, ratio=4)
    assert step(cfg.train_pipeline, "Cutout") == dict(type="Cutout", shape=16, prob=1.0)
    assert step(cfg.train_pipeline, "RandomCrop").padding == 4


def test_imagenet_lt():
    cfg = load("imagenet_lt/se_r50_apa")
    for split in ("train", "val", "test"):
        dataset = cfg[f"{split}_dataloader"].dataset
        assert dataset.type == "SplitFileDataset"
        assert dataset.ann_file == f"ImageNet_LT_{split}.txt"
    assert step(cfg.train_pipeline, "AutoAugment").policies == "imagenet"
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.depth) == ("APAResNet", 50)
    (plugin,) = backbone.plugins
    assert plugin.cfg == dict(type="APASELayer")  # with APA gates
    resnext = load("imagenet_lt/se_x50_apa")
    changed = dict(type="APAResNeXt", groups=32, base_width=4)
    assert resnext.model.backbone == backbone | changed
    assert resnext.optim_wrapper == cfg.optim_wrapper


def test_inaturalist2018():
    cfg = load("inaturalist2018/se_r50_apa")
    train, test = cfg.train_dataloader, cfg.test_dataloader
    assert train.sampler == dict(type="RepeatAugSampler", num_repeats=4)
    for loader, split in ((train, "train"), (cfg.val_dataloader, "val"), (test, "val")):
        assert loader.dataset.type == "SplitFileDataset"
        assert loader.dataset.ann_file == f"{split}2018.json"
    assert step(train.dataset.pipeline, "RandomResizedCrop").scale == 192
    assert step(train.dataset.pipeline, "RandomErasing").erase_prob == 0.1
    assert step(test.dataset.pipeline, "ResizeEdge").scale == 232
    assert cfg.optim_wrapper.paramwise_cfg.norm_decay_mult == 0


def test_places_lt():
    cfg = load("places_lt/se_r152_apa")
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.depth, backbone.frozen_stages) == (
        "APAResNet",
        152,
        3,
    )
    assert backbone.init_cfg.type == "Pretrained"
    uniform = dict(lam=(0.0, 1.0), kappa=(0.0, 1.0))
    assert backbone.act_cfg == dict(type="AGLU", init=uniform)
    assert backbone.plugins[0].cfg.gate_cfg == dict(type="APA", init=uniform)
    assert cfg.custom_hooks[1] == dict(
        type="RedrawActivationsHook", modules="backbone.layer4"
    )
    for split in ("train", "val", "test"):
        dataset = cfg[f"{split}_dataloader"].dataset
        assert dataset.ann_file == f"Places_LT_{split}.txt"


def test_clothing_lt_variants_differ_in_what_they_are_for():
    base = load("clothing_lt/se_r32_relu").model
    start = dict(lam=(0.0, 1.0), kappa=(0.8, 1.2))
    aglu, apa = dict(act_cfg=dict(type="AGLU", init=start)), dict(type="APA")
    sigmoid = dict(type="APALoss", lam=1.0)
    for name, backbone, head in (
        ("aglu", aglu, {}),
        ("apa_gate", dict(gate_cfg=apa), {}),
        ("aglu_apa_gate", dict(aglu, gate_cfg=apa), {}),
        ("sigmoid_head", {}, dict(loss=sigmoid, prior=1 / 17)),
        ("gumbel_head", {}, dict(loss=sigmoid | dict(lam=0.0), prior=1 / 17)),
        (
            "apa_head",
            {},
            dict(loss=sigmoid | dict(learnable="shared"), prior=1 / 17),
        ),
    ):
        model = load(f"clothing_lt/se_r32_{name}").model
        assert model.backbone == base.backbone | backbone
        assert model.head == base.head | head
