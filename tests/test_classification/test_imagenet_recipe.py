"""The configs of configs/imagenet have the published recipe's numbers.

MMPretrain is not needed: the configs are only read.
"""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim.lr_scheduler import CosineAnnealingLR as TorchCosine
from torch.optim.lr_scheduler import LinearLR as TorchLinear
from torch.optim.lr_scheduler import SequentialLR

ROOT = Path(__file__).parents[2] / "configs/imagenet"
NAMES = sorted(path.stem for path in ROOT.glob("*.py"))
TWINS = [name for name in NAMES if name.endswith("_relu")]


def load(name):
    return Config.fromfile(ROOT / f"{name}.py", import_custom_modules=False)


def step(pipeline, kind):
    (found,) = (each for each in pipeline if each["type"] == kind)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name):
    cfg = load(name)
    assert len((ROOT / f"{name}.py").read_text().splitlines()) <= 10
    assert cfg.custom_imports.imports == ["apa_mmdet.classification"]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum) == ("SGD", 0.256, 0.875)
    assert optimizer.weight_decay == 6.103515625e-5
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert {key: keys[key].decay_mult for key in keys} == dict(
        lambda_param=0.0, kappa_param=0.0
    )
    assert "clip_grad" not in cfg.optim_wrapper
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.model.train_cfg.augments == dict(type="Mixup", alpha=0.2)
    train, test = cfg.train_pipeline, cfg.test_pipeline
    assert [each["type"] for each in train[1:-1]] == [
        "RandomResizedCrop",
        "RandomFlip",
        "AutoAugment",
    ]
    assert step(train, "RandomResizedCrop").scale == 192
    assert step(train, "AutoAugment").policies == "imagenet"
    assert step(test, "ResizeEdge").scale == 232
    assert cfg.train_dataloader.batch_size * 4 == cfg.auto_scale_lr.base_batch_size
    assert cfg.train_dataloader.batch_size == 64
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 1000


def test_learning_rates_are_those_of_torchs_schedulers():
    cfg = load("se_r50_apa")

    def optimizer():
        return torch.optim.SGD([torch.zeros(1)], lr=cfg.optim_wrapper.optimizer.lr)

    ours, theirs = optimizer(), optimizer()
    kinds = dict(LinearLR=LinearLR, CosineAnnealingLR=CosineAnnealingLR)
    schedulers = []
    for each in cfg.param_scheduler:
        each = dict(each)
        schedulers.append(kinds[each.pop("type")](ours, **each))
    warm_up = TorchLinear(theirs, start_factor=0.01, total_iters=3)
    cosine = TorchCosine(theirs, T_max=100 - 3, eta_min=0)
    reference = SequentialLR(theirs, [warm_up, cosine], milestones=[3])
    for _ in range(100):
        rates = [each.param_groups[0]["lr"] for each in (ours, theirs)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-6), rates
        for each in (ours, theirs):
            each.step()
        for scheduler in (*schedulers, reference):
            scheduler.step()


@pytest.mark.parametrize("name", TWINS)
def test_a_control_differs_in_activation_and_gates_only(name):
    ours, base = load(name), load(name.replace("_relu", "_apa"))
    assert ours.model.backbone.pop("act_cfg") == dict(type="ReLU")
    act_cfg = base.model.backbone.pop("act_cfg")
    assert act_cfg == dict(type="AGLU", init=dict(lam=(0.0, 1.0), kappa=(0.8, 1.2)))
    (plugin,) = ours.model.backbone.plugins
    assert plugin.cfg.pop("gate_cfg") == dict(type="Sigmoid")
    assert ours.model == base.model
    for key in ("train_pipeline", "test_pipeline", "optim_wrapper", "param_scheduler"):
        assert ours[key] == base[key]


def test_architectures():
    backbones = {name: load(name).model.backbone for name in NAMES}
    depths = {name: backbone.depth for name, backbone in backbones.items()}
    for depth in (101, 152):
        assert depths.pop(f"se_r{depth}_apa") == depth
        assert depths.pop(f"se_r{depth}_relu") == depth
    assert set(depths.values()) == {50} and len(depths) == 6
    for kind in ("apa", "relu"):
        resnext = backbones[f"se_x50_{kind}"]
        assert (resnext.type, resnext.groups, resnext.base_width) == (
            "APAResNeXt",
            32,
            4,
        )
        assert backbones[f"cbam_r50_{kind}"].plugins[0].cfg.type == "APACBAM"
        assert backbones[f"se_r50_{kind}"].plugins[0].cfg.type == "APASELayer"
