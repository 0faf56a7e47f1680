"""Pre-training on a made-up ImageNet, and what a detector makes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

pytest.importorskip("mmpretrain", reason="apa_mmdet.classification needs mmpretrain")

import mmpretrain
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.utils import register_all_modules
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

import apa_mmdet.classification  # noqa: F401
from apa_mmdet import models
from apa_mmdet.layers import AGLU, APA

REPO = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (REPO / "configs/imagenet").glob("*.py"))
MMPRETRAINS = Path(mmpretrain.__file__).parent / ".mim/tools/train.py"
# Images of 40 x 48 pixels; narrow networks.
SMALL = {
    "model.backbone.base_channels": 16,
    "model.head.in_channels": 512,
    "default_hooks.logger.interval": 1,
    "env_cfg.cudnn_benchmark": False,
    "train_dataloader.batch_size": 4,
    "train_dataloader.dataset.pipeline.1.scale": 32,
    "val_dataloader.dataset.pipeline.1.scale": 40,
    "val_dataloader.dataset.pipeline.2.crop_size": 32,
    "train_cfg.max_epochs": 1,
} | {
    f"{split}_dataloader.{key}": value
    for split in ("train", "val", "test")
    for key, value in (("num_workers", 0), ("persistent_workers", False))
}


def small(name, root, work_dir, **settings):
    cfg = Config.fromfile(REPO / f"configs/imagenet/{name}.py")
    cfg.merge_from_dict({**SMALL, **settings})
    for split in ("train", "val"):
        cfg[f"{split}_dataloader"].dataset.data_root = str(root)
    cfg.work_dir = str(work_dir)
    return cfg


def options(root, **settings):
    settings = {**SMALL, **settings}
    for split in ("train", "val"):
        settings[f"{split}_dataloader.dataset.data_root"] = root
    return ["--cfg-options", *(f"{key}={value}" for key, value in settings.items())]


def run(*command, cwd):
    paths = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=paths)
    command = [sys.executable, "-W", "ignore", *map(str, command)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_config_trains_two_steps_and_validates(name, tiny_imagenet, tmp_path):
    runner = Runner.from_cfg(small(name, tiny_imagenet, tmp_path))
    model = runner.train()
    assert runner.iter == 2
    assert runner.message_hub.get_scalar("val/accuracy/top1").current() >= 0
    names = {id(param): key for key, param in model.named_parameters()}
    state = runner.optim_wrapper.optimizer.state
    for parameter in model.parameters():
        assert parameter.isfinite().all(), names[id(parameter)]
        # In two steps the value itself may change by less than its precision.
        assert state[parameter]["momentum_buffer"].any(), names[id(parameter)]
    kinds = {type(module) for module in model.backbone.modules()}
    assert kinds & {AGLU, APA} == ({AGLU, APA} if name.endswith("apa") else set())
    for group in runner.optim_wrapper.optimizer.param_groups:
        for parameter in group["params"]:
            adaptive = names[id(parameter)].endswith(("lambda_param", "kappa_param"))
            assert group["weight_decay"] == (0 if adaptive else 6.103515625e-5)


def test_mmpretrains_own_tool_trains_and_resumes(tiny_imagenet, tmp_path):
    config = REPO / "configs/imagenet/se_r50_apa.py"
    run(MMPRETRAINS, config, *options(tiny_imagenet), cwd=tmp_path)
    work_dir = tmp_path / "work_dirs/se_r50_apa"
    first = torch.load(work_dir / "epoch_1.pth", weights_only=False)
    more = options(tiny_imagenet, **{"train_cfg.max_epochs": 2})
    out = run(MMPRETRAINS, config, "--resume", *more, cwd=tmp_path)
    assert "resumed epoch: 1, iter: 2" in out
    second = torch.load(work_dir / "epoch_2.pth", weights_only=False)
    assert (first["meta"]["iter"], second["meta"]["iter"]) == (2, 4)
    rates = [each["optimizer"]["param_groups"][0]["lr"] for each in (first, second)]
    # The rates of the next epoch: one third and two thirds of the warm-up.
    expected = [0.256 * (0.01 + 0.99 * third / 3) for third in (1, 2)]
    assert rates == pytest.approx(expected)
    assert first["state_dict"].keys() == second["state_dict"].keys()


def test_a_pretrained_backbone_starts_a_detector(tiny_imagenet, tmp_path):
    runner = Runner.from_cfg(small("se_r50_apa", tiny_imagenet, tmp_path))
    runner.train()
    register_all_modules(init_default_scope=True)
    init_cfg = dict(
        type="Pretrained",
        checkpoint=str(tmp_path / "epoch_1.pth"),
        prefix="backbone.",
    )
    plugin = dict(cfg=dict(type="APASELayer"), position="after_conv3")
    backbone = MMDET_MODELS.build(
        dict(
            type="APAResNet",
            depth=50,
            base_channels=16,
            plugins=[plugin],
            init_cfg=init_cfg,
        )
    )
    assert type(backbone) is models.APAResNet
    backbone.init_weights()
    trained = runner.model.backbone.state_dict()
    loaded = backbone.state_dict()
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[key], trained[key]) for key in trained)
    x = torch.randn(1, 3, 64, 64)
    backbone.eval(), runner.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[-1], runner.model.backbone(x)[-1])


SAME_IMAGES = """
_base_ = {base!r}
steps = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=64),
    dict(type="PackInputs"),
]
data = dict(data_root={root!r}, ann_file="same.txt", split="", pipeline=steps)
data["data_prefix"] = "train"
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False),
    dataset=data,
)
val_dataloader = val_evaluator = val_cfg = None
test_dataloader = test_evaluator = test_cfg = None
train_cfg = dict(max_epochs=1)
model = dict(backbone=dict(base_channels=16), head=dict(in_channels=512))
model["train_cfg"] = None
randomness = dict(seed=0)
"""


def test_two_processes_take_the_steps_of_one(tiny_imagenet, tmp_path):
    """Each process sees the batch that a single one sees, so the mean is the same."""
    base = str(REPO / "configs/imagenet/se_r50_apa.py")
    config = tmp_path / "config.py"
    config.write_text(SAME_IMAGES.format(base=base, root=str(tiny_imagenet)))
    images = ["0.png 5\n", "1.png 7\n"]
    listed = tiny_imagenet / "same.txt"

    listed.write_text("".join(images * 2))
    cfg = Config.fromfile(config)
    cfg.work_dir = str(tmp_path / "one")
    one = Runner.from_cfg(cfg)
    one.train()

    # Process 0 takes the first, third, ..., process 1 the others.
    listed.write_text("".join(sorted(images * 2) * 2))
    launch = ["torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    train = [REPO / "tools/train.py", config, "--work-dir", tmp_path / "two"]
    run("-m", *launch, *train, "--launcher", "pytorch", cwd=tmp_path)
    two = torch.load(tmp_path / "two/epoch_1.pth", weights_only=False)
    assert one.iter == two["meta"]["iter"] == 2
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(two["state_dict"][key], value, msg=key)


def test_bf16_on_the_cpu():
    cfg = Config.fromfile(REPO / "configs/imagenet/se_r50_apa.py")
    cfg.merge_from_dict({k: v for k, v in SMALL.items() if k.startswith("model.")})
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        cfg.model.data_preprocessor = cfg.data_preprocessor
        model = MODELS.build(cfg.model).eval()  # without dropout
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    samples = [mmpretrain.structures.DataSample().set_gt_label(i) for i in range(4)]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(**data, mode="loss")["loss"]
        loss.backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters()})
    single, half = gradients
    for key, grad in half.items():
        assert grad.isfinite().all() and grad.dtype == torch.float32, key
    for key in ("head.fc.weight", "backbone.layer4.2.conv3.weight"):
        difference = (half[key] - single[key]).norm() / single[key].norm()
        assert difference < 0.05, f"{key}: {difference}"


def test_scopes_have_their_own_defaults():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        ours = MODELS.build(dict(type="APAResNet", depth=18, base_channels=8))
    register_all_modules(init_default_scope=True)
    theirs = MMDET_MODELS.build(dict(type="APAResNet", depth=18, base_channels=8))
    assert (ours.out_indices, ours.norm_eval) == ((3,), False)
    assert (theirs.out_indices, theirs.norm_eval) == ((0, 1, 2, 3), True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
