"""The authors' checkpoints load as they are and compute what their code computes."""

import copy
import logging
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from torch import nn

from apa_mmdet.engine.launch import prepare_load_from
from apa_mmdet.models import APAResNet
from apa_mmdet.models.published_checkpoints import (
    from_published,
    is_published,
    to_published,
)

PLUGINS = {"se": "APASELayer", "cbam": "APACBAM"}


def backbone(depth=50, attention="se", gate="APA", **kwargs):
    if attention:
        cfg = dict(type=PLUGINS[attention], gate_cfg=dict(type=gate))
        kwargs["plugins"] = [dict(cfg=cfg, position="after_conv3")]
    return APAResNet(depth, norm_eval=True, **kwargs)


# An independent implementation of the published architecture, by the authors' names.


def apa(state, key, z):
    lam, kappa = state[f"{key}.lambda_param"], state[f"{key}.kappa_param"]
    return torch.exp(-F.softplus(lam.log() - kappa * z) / lam)


def activate(state, key, z):
    return z * apa(state, key, z)


def normed(state, key, x):
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{key}.{name}"] for name in names))


def layer_norm(state, key, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{key}.weight"], state[f"{key}.bias"])


def squeeze_excite(state, key, x):
    y = layer_norm(state, f"{key}.norm", x.mean((2, 3)))
    y = F.relu(y @ state[f"{key}.excitation.0.weight"].T)
    y = y @ state[f"{key}.excitation.2.weight"].T
    return x * apa(state, f"{key}.uniact", y)[:, :, None, None]


def block_attention(state, key, x):
    channel, spatial = f"{key}.ChannelGate", f"{key}.SpatialGate"
    total = 0
    for pooled in (x.mean((2, 3)), x.amax((2, 3))):
        y = layer_norm(state, f"{channel}.norm", pooled)
        for index in (1, 3):
            weight, bias = (
                state[f"{channel}.mlp.{index}.{name}"] for name in ("weight", "bias")
            )
            y = F.linear(F.relu(y) if index == 3 else y, weight, bias)
        total = total + y
    x = x * apa(state, f"{channel}.uniact", total)[:, :, None, None]
    pooled = torch.stack((x.amax(1), x.mean(1)), 1)
    y = F.conv2d(pooled, state[f"{spatial}.spatial.conv.weight"], padding=3)
    return x * apa(
        state, f"{spatial}.uniact", normed(state, f"{spatial}.spatial.bn", y)
    )


def features(state, x):
    """Return the four feature maps, in evaluation mode."""
    x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(activate(state, "relu", normed(state, "bn1", x)), 3, 2, 1)
    maps = []
    for stage in (1, 2, 3, 4):
        index = 0
        while f"layer{stage}.{index}.conv1.weight" in state:
            key = f"layer{stage}.{index}"
            stride = 2 if stage > 1 and index == 0 else 1
            y = F.conv2d(x, state[f"{key}.conv1.weight"])
            y = activate(state, f"{key}.unirect1", normed(state, f"{key}.bn1", y))
            y = F.conv2d(y, state[f"{key}.conv2.weight"], stride=stride, padding=1)
            y = activate(state, f"{key}.unirect2", normed(state, f"{key}.bn2", y))
            y = F.conv2d(y, state[f"{key}.conv3.weight"])
            y = normed(state, f"{key}.bn3", y)
            if f"{key}.se.norm.weight" in state:
                y = squeeze_excite(state, f"{key}.se", y)
            if f"{key}.cbam.ChannelGate.norm.weight" in state:
                y = block_attention(state, f"{key}.cbam", y)
            if index == 0:
                x = F.conv2d(x, state[f"{key}.downsample.0.weight"], stride=stride)
                x = normed(state, f"{key}.downsample.1", x)
            x = activate(state, f"{key}.unirect3", y + x)
            index += 1
        maps.append(x)
    return maps


MODELS_TO_COMPARE = [(50, "se"), (101, "se"), (50, "cbam")]


@pytest.mark.parametrize(("depth", "attention"), MODELS_TO_COMPARE)
def test_feature_maps_are_the_published_ones(published_state, depth, attention):
    state = published_state(depth, attention)
    model = backbone(depth, attention)
    model.eval()  # mmdet's train() does not return the module
    model.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outs, expected = model(x), features(state, x)
    for out, other in zip(outs, expected, strict=True):
        assert 0.1 < other.abs().mean() < 10
        # A hundred layers accumulate rounding errors; the next test is in float64.
        scale = float(other.abs().max())
        torch.testing.assert_close(out, other, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(("depth", "attention"), MODELS_TO_COMPARE)
def test_maps_and_gradients_in_double_precision(published_state, depth, attention):
    state = {
        key: value.double() if value.is_floating_point() else value
        for key, value in published_state(depth, attention).items()
    }
    model = backbone(depth, attention).double()
    model.eval()
    model.load_state_dict(state)
    leaves = {
        key: value.requires_grad_()
        for key, value in state.items()
        if key.endswith("_param")
    }
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    outs, expected = model(x), features(state, x)
    for maps in (outs, expected):
        sum(level.square().mean() for level in maps).backward()
    for out, other in zip(outs, expected):
        torch.testing.assert_close(out, other, rtol=1e-9, atol=1e-9)
    ours = {
        key: param.grad
        for key, param in model.named_parameters()
        if key.endswith("_param")
    }
    theirs = from_published({key: leaf.grad for key, leaf in leaves.items()}, False)
    # Values change on the way to our names, gradients must not.
    theirs = dict(zip(theirs, (leaf.grad for leaf in leaves.values())))
    assert set(ours) == set(theirs)
    assert len(ours) == 2 * (3 * sum(model.stage_blocks) + 1) + (
        2 * (2 if attention == "cbam" else 1) * sum(model.stage_blocks)
    )
    for key, grad in ours.items():
        assert grad.ne(0).all(), key
        torch.testing.assert_close(grad, theirs[key], rtol=1e-9, atol=1e-9, msg=key)


# A whole detector.


class Transcribed(nn.Module):
    """A backbone that consists of the functions above."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def forward(self, x):
        return tuple(features(self.state, x))


def detector_cfg(repo, name):
    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(repo / f"configs/lvis/{name}.py").model
    cfg.backbone.init_cfg = None
    cfg.test_cfg.rpn.update(nms_pre=200, max_per_img=40)
    cfg.test_cfg.rcnn.update(max_per_img=8)
    return cfg


def published_detector(model, backbone_state):
    """Return the weights in a detection file: neck and heads have mmdet's names."""
    state = {f"backbone.{key}": value for key, value in backbone_state.items()}
    generator = torch.Generator().manual_seed(2)
    for key, value in model.state_dict().items():
        # APALoss's buffer about the data set is not in the authors' files.
        if not key.startswith("backbone.") and not key.endswith("class_frequency"):
            fan_in = max(value[0].numel(), 1) if value.dim() else 1
            drawn = torch.randn(value.shape, generator=generator)
            state[key] = drawn / fan_in**0.5
    return state


def outputs(model, image):
    """Return what neck and heads compute before anything is sorted by score."""
    model.eval()
    rois = torch.tensor([[0, 4, 8, 60, 70], [0, 0, 0, 127, 95], [0, 30, 20, 50, 90.0]])
    with torch.no_grad():
        maps = model.extract_feat(image)
        box = model.roi_head._bbox_forward(maps, rois)
        mask = model.roi_head._mask_forward(maps, rois)
        values = {f"map {level}": x for level, x in enumerate(maps)}
        for part, levels in zip(("objectness", "deltas"), model.rpn_head(maps)):
            values |= {f"{part} {level}": x for level, x in enumerate(levels)}
        values["scores"] = model.roi_head.bbox_head.loss_cls.get_activation(
            box["cls_score"]
        )
    return {**values, "boxes": box["bbox_pred"], "masks": mask["mask_preds"]}


def predict(model, image):
    sample = DetDataSample(
        metainfo=dict(
            img_shape=image.shape[-2:],
            ori_shape=image.shape[-2:],
            batch_input_shape=image.shape[-2:],
            scale_factor=(1.0, 1.0),
        )
    )
    model.eval()
    with torch.no_grad():
        return model.predict(image, [sample])[0].pred_instances


def test_the_published_r101_detector(published_state, repo, tmp_path):
    cfg = detector_cfg(repo, "mask_rcnn_se_r101_apa")
    model = MODELS.build(copy.deepcopy(cfg))
    state = published_detector(model, published_state(101))
    model.load_state_dict(state)  # strict: no missing or unexpected keys

    # mmdet's own parts around the transcription, with mmdet's cosine predictor.
    cfg.backbone = dict(type="ResNet", depth=18)
    cfg.roi_head.bbox_head.type = "Shared2FCBBoxHead"
    cfg.roi_head.bbox_head.pop("prior")
    cfg.roi_head.mask_head.predictor_cfg = dict(type="NormedConv2d", tempearture=20)
    reference = MODELS.build(cfg)
    reference.backbone = Transcribed(
        {k.removeprefix("backbone."): v for k, v in state.items()}
    )
    rest = {k: v for k, v in state.items() if not k.startswith("backbone.")}
    reference.load_state_dict(rest)

    # From a file, as load_from and tools/test.py do it.
    path = tmp_path / "epoch_24.pth"
    torch.save({"meta": {}, "state_dict": state}, path)
    model = MODELS.build(detector_cfg(repo, "mask_rcnn_se_r101_apa"))
    load_checkpoint(model, str(path), map_location="cpu")

    image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    others = outputs(reference, image)
    for name, out in outputs(model, image).items():
        expected = others[name]
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            out, expected, rtol=1e-5, atol=1e-5 * scale, msg=name
        )
    instances = predict(model, image)
    assert len(instances) == 8 and instances.masks.shape == (8, 96, 128)


def test_the_published_r50_detector_is_filled(published_state, repo):
    """Only loaded, since CARAFE has no CPU kernel."""
    model = MODELS.build(detector_cfg(repo, "mask_rcnn_se_r50_apa"))
    state = published_detector(model, published_state(50))
    temperature = "roi_head.mask_head.conv_logits.tempearture"
    assert state[temperature].shape == (1,)
    model.load_state_dict(state)
    assert torch.equal(model.state_dict()[temperature], state[temperature])


# Kinds of file, and ways to load them.


@pytest.fixture
def warnings_of_mmengine(monkeypatch):
    """MMEngine's warnings about keys while it loads."""
    said = []

    def note(record):
        if record.levelno >= logging.WARNING:
            said.append(record.getMessage())

    monkeypatch.setattr(MMLogger.get_current_instance(), "handle", note)
    return said


def mmengine_loads(model, content, path, **init):
    torch.save(content, path)
    model.init_cfg = dict(type="Pretrained", checkpoint=str(path), **init)
    model.init_weights()


SMALL = dict(width=16)
KINDS = {
    "backbone": lambda state, _: state,
    "state_dict": lambda state, _: {"state_dict": state, "meta": {}},
    "parallel": lambda state, _: {f"module.{key}": v for key, v in state.items()},
    "detection": lambda state, _: {
        "state_dict": {f"backbone.{k}": v for k, v in state.items()}
        | {"neck.bias": torch.zeros(1)}
    },
    "classification": lambda state, nest: nest(state),
    "classification with ema": lambda state, nest: nest(
        state, model_ema={f"module.{k}": torch.zeros_like(v) for k, v in state.items()}
    ),
    "ema only": lambda state, nest: {
        "model_ema": {f"module.{k}": v for k, v in state.items()}
        | {"n_averaged": torch.tensor(3), "module.fc.weight": torch.zeros(1)}
    },
    "classifier's weights": lambda state, nest: nest(state)["model"],
}


@pytest.mark.parametrize("gate", ["uniact", "unact"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_a_pretrained_backbone(
    kind, gate, published_state, classification_file, tmp_path, warnings_of_mmengine
):
    state = published_state(gate=gate, **SMALL)
    model = backbone(base_channels=16)
    content = KINDS[kind](state, classification_file)
    mmengine_loads(model, content, tmp_path / "file.pth")
    assert warnings_of_mmengine == []
    loaded = model.state_dict()
    expected = from_published(state)
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    model.load_state_dict(content.get("state_dict", content))


def starting_from(content, path, **settings):
    """Return a config as tools/train.py prepares it."""
    torch.save(content, path)
    plugin = dict(cfg=dict(type="APASELayer"), position="after_conv3")
    own = dict(type="APAResNet", depth=50, base_channels=16, plugins=[plugin])
    cfg = Config(dict(model=dict(backbone=own), load_from=str(path), **settings))
    prepare_load_from(cfg)
    return cfg


@pytest.mark.parametrize("kind", ["backbone", "state_dict", "classification"])
def test_load_from_a_file_with_only_a_backbone_fills_the_backbone(
    kind, published_state, classification_file, tmp_path, warnings_of_mmengine
):
    state = published_state(**SMALL)
    cfg = starting_from(KINDS[kind](state, classification_file), tmp_path / "file.pth")
    assert cfg.load_from is None
    model = MODELS.build(cfg.model.backbone)
    model.init_weights()
    assert warnings_of_mmengine == []
    expected = from_published(state)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in expected.items())


def test_load_from_a_detectors_file_is_unchanged(published_state, tmp_path):
    path = tmp_path / "file.pth"
    cfg = starting_from(KINDS["detection"](published_state(**SMALL), None), path)
    assert cfg.load_from == str(path) and "init_cfg" not in cfg.model.backbone


def test_load_from_is_left_to_a_classifier(
    published_state, classification_file, tmp_path
):
    path = tmp_path / "file.pth"
    content = KINDS["classification"](published_state(**SMALL), classification_file)
    cfg = starting_from(content, path, default_scope="mmpretrain")
    assert cfg.load_from == str(path) and "init_cfg" not in cfg.model.backbone


def test_load_from_refuses_before_anything_is_read(published_state, tmp_path):
    path, touched = tmp_path / "file.pth", tmp_path / "touched"
    with pytest.raises(ValueError, match="contains only a backbone.*not resume"):
        starting_from(published_state(**SMALL), path, resume=True)
    for content, words in (
        ({"model": Touch(touched)}, "references posix.system.*refused"),
        (3, "file.pth: contains a int, expected a dict"),
        ({"state_dict": 3}, "'state_dict' is a int"),
        ({"epoch": 3}, "expected weights by name.*got epoch"),
    ):
        with pytest.raises(ValueError, match=words):
            starting_from(content, path)
    with pytest.raises(ValueError, match="nowhere.pth: no such file"):
        prepare_load_from(Config(dict(load_from="nowhere.pth")))
    assert not touched.exists()


def test_prefix_of_a_detection_file(published_state, tmp_path, warnings_of_mmengine):
    state = published_state(attention="cbam", **SMALL)
    content = KINDS["detection"](state, None)
    model = backbone(attention="cbam", base_channels=16)
    mmengine_loads(model, content, tmp_path / "file.pth", prefix="backbone.")
    assert warnings_of_mmengine == []
    name = "layer2.1.{}.bn.running_var"
    assert torch.equal(
        model.state_dict()[name.format("cbam.spatial_gate")],
        state[name.format("cbam.SpatialGate.spatial")],
    )


def test_other_keys_are_reported_by_name(
    published_state, tmp_path, warnings_of_mmengine
):
    state = published_state(**SMALL)
    state["layer1.0.other.weight"] = torch.zeros(1)
    del state["layer1.0.unirect2.kappa_param"]
    mmengine_loads(backbone(base_channels=16), state, tmp_path / "file.pth")
    (said,) = warnings_of_mmengine
    assert "unexpected key in source state_dict: layer1.0.other.weight" in said
    assert "missing keys in source state_dict: layer1.0.act2.kappa_param" in said


def test_both_spellings_of_a_key_are_refused():
    state = {f"layer1.0.se.{gate}.kappa_param": torch.zeros(1) for gate in "ab"}
    state = {key.replace(".a.", ".unact."): v for key, v in state.items()}
    state = {key.replace(".b.", ".uniact."): v for key, v in state.items()}
    with pytest.raises(ValueError, match="two spellings"):
        from_published(state)


def test_other_checkpoints_are_not_changed(tmp_path):
    model = backbone(base_channels=16)
    with torch.no_grad():
        model.relu.lambda_param.fill_(-0.5)
        model.layer1[0].se.gate.kappa_param.fill_(7.0)
    state = model.state_dict()
    assert not is_published(state)
    other = backbone(base_channels=16)
    other.load_state_dict(state)
    assert other.relu.lambda_param == -0.5
    assert other.layer1[0].se.gate.kappa_param == 7
    plain = backbone(attention=None, base_channels=16, act_cfg=dict(type="ReLU"))
    result = other.load_state_dict(
        {**plain.state_dict(), "fc.weight": torch.zeros(1)}, strict=False
    )
    assert result.unexpected_keys == ["fc.weight"]


def test_a_whole_model_needs_a_prefix(tmp_path):
    """Without it, MMEngine would load nothing and only mention the keys in its log."""
    model = backbone(base_channels=16)
    state = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / "model.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "model.pth"))
    with pytest.raises(RuntimeError, match="whole model.*add prefix='backbone.'"):
        backbone(base_channels=16, init_cfg=init_cfg).init_weights()
    other = backbone(base_channels=16, init_cfg=dict(init_cfg, prefix="backbone."))
    other.init_weights()
    assert torch.equal(other.conv1.weight, model.conv1.weight)


# Values.


def test_lambda_and_kappa_get_the_values_the_published_code_uses(published_state):
    state = published_state(**SMALL)
    stem, site, gate = (
        f"{name}.lambda_param"
        for name in ("relu", "layer1.0.unirect1", "layer1.0.se.uniact")
    )
    values = {stem: -0.3, site: 0.0, gate: -1.0, "layer1.1.unirect1.lambda_param": 5e-5}
    values |= {
        "layer1.1.se.uniact.lambda_param": 50,
        "layer1.1.se.uniact.kappa_param": -9,
    }
    state |= {key: torch.tensor([float(value)]) for key, value in values.items()}
    model = backbone(base_channels=16)
    model.load_state_dict(state)
    first, second = model.layer1[0], model.layer1[1]
    for module in (model.relu, first.act1, first.se.gate, second.act1):
        assert module.lambda_param == torch.tensor(1e-4)
    # The code with learnable activations only bounds its gates from below.
    assert second.se.gate.lambda_param == 50 and second.se.gate.kappa_param == -9

    model.load_state_dict({**state, "fc.weight": torch.zeros(1)})
    assert model.relu.lambda_param == first.act1.lambda_param == torch.tensor(1e-8)
    assert second.act1.lambda_param == torch.tensor(5e-5)
    assert first.se.gate.lambda_param == torch.tensor(1e-4)


@pytest.mark.parametrize(("attention", "bound"), [("se", 3.5), ("cbam", 3.25)])
def test_gates_of_the_older_code_are_bounded(published_state, attention, bound):
    state = published_state(attention=attention, rect=None, **SMALL)
    gate = "se.uniact" if attention == "se" else "cbam.SpatialGate.uniact"
    for name, value in (("lambda", 12.0), ("kappa", -4.0)):
        state[f"layer1.0.{gate}.{name}_param"] = torch.tensor([value])
    model = backbone(attention=attention, base_channels=16, act_cfg=dict(type="ReLU"))
    model.load_state_dict(state)
    part = getattr(model.layer1[0], attention)
    part = part.gate if attention == "se" else part.spatial_gate.gate
    assert part.lambda_param == 10 and part.kappa_param == -bound


def test_features_with_lambda_below_zero(published_state):
    """Compared with the transcription, with the clamp of the published code."""
    state = published_state(**SMALL)
    generator = torch.Generator().manual_seed(3)
    for key in [key for key in state if key.endswith("lambda_param")]:
        if torch.rand(1, generator=generator) < 0.3:
            state[key] = -state[key]
    model = backbone(base_channels=16)
    model.eval()
    model.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64, generator=generator)
    used = {
        key: value.clamp(min=1e-4) if key.endswith("lambda_param") else value
        for key, value in state.items()
    }
    with torch.no_grad():
        for out, expected in zip(model(x), features(used, x)):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["se", "cbam"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_round_trip_is_exact(published_state, attention, prefix):
    state = published_state(attention=attention, **SMALL)
    state = {prefix + key: value for key, value in state.items()}
    ours = from_published(state)
    assert not is_published(ours) and is_published(to_published(ours))
    again = to_published(ours)
    assert list(again) == list(state)
    assert all(torch.equal(again[key], state[key]) for key in state)
    assert list(from_published(again)) == list(ours)


# Files that must be refused.

WRONG = {
    "no SE": (
        dict(),
        dict(attention=None),
        r"is SE, the model's NONE.*type='APASELayer'.*not in the model: layer1.0.se",
    ),
    "CBAM for SE": (dict(), dict(attention="cbam"), "CBAM.*type='APASELayer'"),
    "SE for CBAM": (dict(attention="cbam"), dict(), "SE.*type='APACBAM'"),
    "SE for none": (
        dict(attention=None),
        dict(),
        "attention is NONE.*drop it from plugins",
    ),
    "depth": (dict(depth=101), dict(), r"ResNet-101 \(3, 4, 23, 3.*set depth=101"),
    "basic blocks": (dict(), dict(depth=34, attention=None), "34 .*basic.*depth=50"),
    "ReLU": (
        dict(),
        dict(act_cfg=dict(type="ReLU")),
        r"use AGLU, the model's ReLU; set act_cfg=dict\(type='AGLU'\)",
    ),
    "AGLU": (dict(rect=None), dict(), r"use ReLU.*set act_cfg=dict\(type='ReLU'\)"),
    "gate": (dict(), dict(gate="Sigmoid"), "gates are APA, the model's Sigmoid"),
    "width": (dict(), dict(base_channels=32), r"conv1.weight \(16, 3, 7, 7\) in the"),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_architecture_is_refused_with_the_setting(
    case, published_state, tmp_path
):
    file, model, words = WRONG[case]
    state = published_state(**SMALL, **file)
    model = backbone(**{"base_channels": 16, **model})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="has another architecture.*" + words):
        mmengine_loads(model, state, tmp_path / "file.pth")
    with pytest.raises(RuntimeError, match=words):
        model.load_state_dict(state, strict=False)
    after = model.state_dict()
    # init_weights() has drawn the weights again; lambda and kappa must not change.
    assert all(torch.equal(after[k], before[k]) for k in before if "param" in k)


def test_attention_without_a_norm_is_refused(published_state):
    state = published_state(attention="cbam", **SMALL)
    state = {key: v for key, v in state.items() if "ChannelGate.norm" not in key}
    with pytest.raises(RuntimeError, match="no LayerNorm"):
        backbone(attention="cbam", base_channels=16).load_state_dict(state)


class Touch:
    """Pickles as a call that creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_file_is_refused_and_not_run(published_state, tmp_path):
    touched = tmp_path / "touched"
    state = published_state(**SMALL)
    for position in ("args", "model"):
        content = {"model": state, position: Touch(touched)}
        with pytest.raises(pickle.UnpicklingError, match="references posix.system"):
            mmengine_loads(backbone(base_channels=16), content, tmp_path / "evil.pth")
    assert not touched.exists()


def test_a_hostile_download_is_refused_and_not_run(tmp_path, monkeypatch):
    touched = tmp_path / "touched"
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # A file in the cache is not downloaded again.
    torch.save({"model": Touch(touched)}, folder / "evil.pth")
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(backbone(base_channels=16), "https://localhost/evil.pth")
    assert not touched.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "page", "number"])
def test_a_damaged_file_is_refused_by_name(damage, published_state, tmp_path):
    path = tmp_path / "file.pth"
    torch.save(published_state(**SMALL), path)
    data = path.read_bytes()
    content = dict(cut=data[: len(data) // 2], empty=b"", page=b"<html>Quota</html>")
    if damage == "number":
        torch.save(3, path)
    else:
        path.write_bytes(content[damage])
    words = "file.pth cannot be read as a checkpoint|No state_dict found.*file.pth"
    with pytest.raises((RuntimeError, pickle.UnpicklingError), match=words):
        load_checkpoint(backbone(base_channels=16), str(path))
