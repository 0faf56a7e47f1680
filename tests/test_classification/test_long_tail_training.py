"""Every config of a long-tailed data set trains, on made-up data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

pytest.importorskip("mmpretrain", reason="apa_mmdet.classification needs mmpretrain")

from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from apa_mmdet.classification.redraw_hook import RedrawActivationsHook
from apa_mmdet.layers import AGLU, APA

ROOT = Path(__file__).parents[2]
FOLDERS = ("cifar100_lt", "imagenet_lt", "inaturalist2018", "places_lt", "clothing_lt")
NAMES = [
    f"{folder}/{path.stem}"
    for folder in FOLDERS
    for path in sorted((ROOT / "configs" / folder).glob("*.py"))
]
COUNTS = dict(train=(5, 2, 1), val=(2, 1, 1), test=(2, 1, 1))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of three classes, as folders and in every list of a config."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, counts in COUNTS.items():
        lines, images, annotations = [], [], []
        for label, count in enumerate(counts):
            folder = f"{split}/{'abc'[label]}"
            (root / folder).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                path = f"{folder}/{number}.png"
                Image.fromarray(pixels).save(root / path)
                annotations.append(dict(image_id=len(images), category_id=label))
                images.append(dict(id=len(images), file_name=path))
                lines.append(f"{path} {label}\n")
        for name in ("ImageNet", "Places"):
            (root / f"{name}_LT_{split}.txt").write_text("".join(lines))
        categories = [dict(id=label, name="abc"[label]) for label in range(3)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f"{split}2018.json").write_text(json.dumps(content))
    return root


def small(name, root, work_dir):
    """The config with a small network, three classes and the photographs."""
    cfg = Config.fromfile(ROOT / f"configs/{name}.py")
    backbone, head = cfg.model.backbone, cfg.model.head
    head.num_classes = cfg.data_preprocessor.num_classes = 3
    if backbone.type == "SEResNetCIFAR":
        backbone.depth = 8
    else:
        backbone.update(depth=50, base_channels=16, init_cfg=None)
        head.in_channels = 512
    for split in COUNTS:
        loader = cfg[f"{split}_dataloader"]
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        dataset = loader.dataset
        if dataset.type == "LongTailDataset":
            dataset.update(ratio=4, max_count=4)
            dataset = dataset.dataset
        if dataset.type == "CIFAR100":
            pipeline = [dict(type="LoadImageFromFile"), *dataset.pipeline]
            prefix = "train" if split == "train" else "test"
            dataset.clear()
            dataset.update(type="CustomDataset", data_prefix=prefix, pipeline=pipeline)
        for step in dataset.pipeline:
            if step.type in ("RandomResizedCrop", "ResizeEdge"):
                step.scale = 32
            elif step.type == "CenterCrop":
                step.crop_size = 32
        dataset.data_root = str(root)
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    optim_wrapper = cfg.optim_wrapper
    if optim_wrapper.type == "AmpOptimWrapper":  # MMEngine's needs a GPU
        optim_wrapper.type = "OptimWrapper"
        del optim_wrapper["loss_scale"]
    cfg.work_dir, cfg.env_cfg.cudnn_benchmark = str(work_dir), False
    cfg.randomness = dict(seed=0)
    return cfg


@pytest.mark.parametrize("name", NAMES)
def test_every_config_trains_two_steps_and_validates(name, photos, tmp_path):
    cfg = small(name, photos, tmp_path)
    runner = Runner.from_cfg(cfg)
    model = runner.train()
    assert runner.iter == 2
    counts = [4, 2, 1] if name.startswith("cifar100_lt") else [5, 2, 1]
    assert model.head.class_counts.tolist() == counts
    assert 0 <= runner.message_hub.get_scalar("val/accuracy/all").current() <= 100
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    names = {id(param): key for key, param in model.named_parameters()}
    for group in runner.optim_wrapper.optimizer.param_groups:
        for parameter in group["params"]:
            key = names[id(parameter)]
            is_adaptive = key.endswith(("lambda_param", "kappa_param"))
            is_norm = name.startswith("inaturalist") and ".bn" in key
            if is_adaptive or is_norm:
                assert group["weight_decay"] == 0, key
            elif ".norm." not in key and ".downsample." not in key:
                assert group["weight_decay"] == cfg.optim_wrapper.optimizer.weight_decay
    kinds = {type(module) for module in model.backbone.modules()}
    has_apa = not name.endswith(("sigmoid_gate", "relu", "_aglu")) and (
        not name.startswith("clothing_lt") or name.endswith(("apa_gate", "narrow_apa"))
    )
    has_apa |= name.endswith("_aglu") and not name.startswith("clothing_lt")
    assert (APA in kinds) == has_apa
    has_aglu = "aglu" in name or name.endswith(("se_r152_apa", "narrow_apa"))
    assert (AGLU in kinds) == has_aglu


def test_places_lt_starts_from_a_checkpoint(photos, tmp_path):
    cfg = small("places_lt/se_r152_apa", photos, tmp_path)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        source = MODELS.build(cfg.model)
    for module in source.modules():
        if isinstance(module, (AGLU, APA)):
            torch.nn.init.constant_(module.lambda_param, 7.0)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / "start.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "start.pth"))
    cfg.model.backbone.init_cfg = dict(init_cfg, prefix="backbone.")
    runner = Runner.from_cfg(cfg)
    backbone = runner.train().backbone
    start = source.backbone.state_dict()
    for key, value in backbone.state_dict().items():
        is_frozen = not key.startswith("layer4")
        same = torch.equal(value, start[key])
        assert same == is_frozen or not value.is_floating_point(), key
        if key.endswith("lambda_param"):
            assert (value == 7) if is_frozen else (-1 < value < 2), key
    # A training that is resumed keeps what it has learnt.
    (hook,) = (h for h in runner.hooks if isinstance(h, RedrawActivationsHook))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    hook.before_train(runner)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    hook.modules = "head"
    with pytest.raises(ValueError, match="modules='head' of .* no AGLU or APA"):
        hook.before_train(runner)


def test_resuming_and_bfloat16(photos, tmp_path):
    cfg = small("cifar100_lt/se_r32_apa_per_class_head", photos, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        Runner.from_cfg(cfg).train()
        cfg.train_cfg.max_epochs, cfg.resume = 2, True
        runner = Runner.from_cfg(cfg)
        model = runner.train()
    assert runner.iter == 4
    assert model.head.class_counts.tolist() == [4, 2, 1]
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32 and parameter.isfinite().all()


def test_a_test_without_class_counts_ends_before_it_starts(photos, tmp_path):
    cfg = small("clothing_lt/se_r32_relu", photos, tmp_path)
    cfg.model.head.calibration = "PostCompensation"
    runner = Runner.from_cfg(cfg)
    with pytest.raises(RuntimeError, match="class counts.*--read-counts"):
        runner.test()
    cfg.custom_hooks[0].read_in_test = True
    assert 0 <= Runner.from_cfg(cfg).test()["accuracy/all"] <= 100


@pytest.mark.slow
def test_two_processes(photos, tmp_path):
    cfg = small("clothing_lt/se_r32_apa_head", photos, tmp_path)
    # Three test images of one process, and one that fills up the other.
    cfg.test_dataloader.dataset.indices = cfg.val_dataloader.dataset.indices = 3
    cfg.val_evaluator.outfile_prefix = str(tmp_path / "two")
    cfg.dump(tmp_path / "config.py")
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [ROOT / "tools/train.py", tmp_path / "config.py", "--launcher=pytorch"]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command), f"--work-dir={tmp_path}"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    cfg.load_from = str(tmp_path / "epoch_1.pth")
    cfg.test_evaluator = dict(
        type="LongTailAccuracy", outfile_prefix=str(tmp_path / "one")
    )
    runner = Runner.from_cfg(cfg)
    runner.test()
    assert runner.model.head.class_counts.tolist() == [5, 2, 1]
    one, two = (
        json.loads((tmp_path / f"{n}.top1.json").read_text()) for n in ("one", "two")
    )
    assert one == two and len(one["labels"]) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        # The hook of tools/train.py in its place.
        ({"custom_hooks": [dict(type="mmdet.SetupCheckHook")]}, "no class counts of"),
        (
            {"custom_hooks": [], "model.head.calibration": "PostCompensation"},
            "calibration='PostCompensation' .* needs the class counts",
        ),
        (
            {
                "model.head.calibration": "PostCompensation",
                "train_dataloader.dataset.indices": 5,
            },
            "2 of 3 classes have no .* label 1 .*min_images=1",
        ),
    ],
)
def test_what_only_validation_would_miss_ends_training_at_once(
    settings, words, photos, tmp_path
):
    cfg = small("clothing_lt/se_r32_relu", photos, tmp_path)
    cfg.merge_from_dict(settings)
    runner = Runner.from_cfg(cfg)
    with pytest.raises((RuntimeError, ValueError), match=words):
        runner.train()
    assert runner.iter == 0
