"""APAClassifier on MMPretrain's classifiers."""

import copy

import pytest
import torch

pytest.importorskip("mmpretrain", reason="apa_mmdet.classification needs mmpretrain")

from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import nn

import apa_mmdet.classification  # noqa: F401
from apa_mmdet.layers import AGLU
from apa_mmdet.testing.models import fill_zero_weights, fitting_statistics

GAP = dict(type="GlobalAveragePooling")


def linear(channels):
    return dict(type="LinearClsHead", num_classes=5, in_channels=channels)


VIT = dict(
    type="VisionTransformer",
    arch=dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64),
    img_size=64,
    patch_size=16,
)
# Backbone, and the channels of its features.
MODELS_TO_CONVERT = {
    "ResNet": (dict(type="ResNet", depth=18, base_channels=16, stem_channels=16), 128),
    "SEResNet": (dict(type="SEResNet", depth=50, base_channels=16), 512),
    "ConvNeXt": (
        dict(
            type="ConvNeXt",
            arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32]),
            layer_scale_init_value=1.0,
        ),
        32,
    ),
    "Swin": (
        dict(
            type="SwinTransformer",
            arch=dict(embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4]),
            img_size=64,
            window_size=2,
        ),
        192,
    ),
    "MobileNetV2": (dict(type="MobileNetV2", widen_factor=0.25), 1280),
    "MobileNetV3": (dict(type="MobileNetV3", arch="small_050"), 288),
    "EfficientNet": (dict(type="EfficientNet", arch="b0"), 1280),
}


def config(name, **options):
    if name == "ViT":
        head = dict(type="VisionTransformerClsHead", num_classes=5, in_channels=32)
        parts = dict(backbone=VIT, head=head)
    else:
        backbone, channels = MODELS_TO_CONVERT[name]
        neck = None if name == "ConvNeXt" else GAP
        parts = dict(backbone=backbone, neck=neck, head=linear(channels))
    parts = copy.deepcopy(parts)
    if options.pop("converted", True):
        return dict(
            type="APAClassifier", base_type="ImageClassifier", **parts, **options
        )
    return dict(type="ImageClassifier", **parts)


def build(cfg):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(cfg)
    model.init_weights()
    return model


NAMES = ["ViT", *MODELS_TO_CONVERT]
# Twice what was measured, as AGLU approximates all of these except SiLU.
LARGEST = dict.fromkeys(NAMES, 0.04) | {
    "SEResNet": 0.08,
    "MobileNetV2": 0.28,  # ReLU6
    "EfficientNet": 1e-4,  # SiLU
}


@pytest.mark.parametrize("name", NAMES)
def test_starts_close_and_keeps_the_keys(name):
    plain = build(config(name, converted=False))
    fill_zero_weights(plain)
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with fitting_statistics(plain):
        plain(images)
    plain.eval()
    model = build(config(name))
    assert type(model) is type(plain)
    added = [key for key in model.state_dict() if key not in plain.state_dict()]
    sites = model.conversion_report.sites
    assert len(added) == 2 * len(sites) > 0
    assert all(key.endswith(("lambda_param", "kappa_param")) for key in added)
    assert all(site.path.startswith("backbone.") for site in sites)
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert result.unexpected_keys == [] and set(result.missing_keys) == set(added)
    model.eval()
    with torch.no_grad():
        expected, actual = plain(images), model(images)
    difference = float((actual - expected).abs().max() / expected.abs().max())
    print(f"{name}: {len(sites)} sites, {difference:.3g}")
    assert difference < LARGEST[name]


def test_options_and_errors():
    model = build(config("ResNet", exclude=["backbone.layer1"]))
    paths = [site.path for site in model.conversion_report.sites]
    assert paths and not any(path.startswith("backbone.layer1") for path in paths)
    assert {type(model.get_submodule(path)) for path in paths} == {AGLU}
    assert isinstance(model.backbone.layer1[0].relu, nn.ReLU)
    cfg = config("ResNet")
    del cfg["base_type"]
    with pytest.raises(ValueError, match="APAClassifier needs base_type"):
        build(cfg)
    with pytest.raises(ValueError, match="has a converted classifier already"):
        build({**config("ResNet"), "base_type": "APAClassifier"})


def test_no_weight_decay_for_lambda_and_kappa():
    from mmengine.optim import build_optim_wrapper

    model = build(config("ResNet"))
    cfg = dict(optimizer=dict(type="SGD", lr=0.1, weight_decay=0.01))
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert len(groups[1]["params"]) == 2 * len(model.conversion_report.sites)


def test_converted_classifiers_train():
    model = build(config("ConvNeXt"))
    logits = model(torch.randn(2, 3, 64, 64))
    logits.square().mean().backward()
    for site in model.conversion_report.sites:
        aglu = model.get_submodule(site.path)
        assert aglu.lambda_param.grad.isfinite().all()
        assert aglu.kappa_param.grad.abs().sum() > 0
