"""Training, resuming, several processes and testing, through the tools."""

import copy
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook

REPO = Path(__file__).parents[1]
CONFIG = str(REPO / "configs/mini_lvis/mask_rcnn_r18_apa.py")
# Small enough for seconds: a few images, narrow layers, little to propose.
SMALL = {
    "train_dataloader.dataset.dataset.indices": 16,
    "train_dataloader.batch_size": 4,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "val_dataloader.dataset.indices": 6,
    "val_dataloader.num_workers": 0,
    "val_dataloader.persistent_workers": False,
    "test_dataloader.dataset.indices": 6,
    "test_dataloader.num_workers": 0,
    "test_dataloader.persistent_workers": False,
    "model.backbone.base_channels": 8,
    "model.neck.in_channels": [8, 16, 32, 64],
    "model.train_cfg.rpn_proposal.max_per_img": 32,
    "model.test_cfg.rpn.max_per_img": 32,
    # LVIS's rare group is a larger share of few images.
    "model.roi_head.bbox_head.loss_cls.rare_threshold": 0.1,
}


def mmdets(tool):
    """Return the path of MMDetection's own tool."""
    import mmdet

    return Path(mmdet.__file__).parent / ".mim" / "tools" / tool


def options(root=None, **extra):
    """Return the command line's --cfg-options."""
    settings = {**SMALL, **extra}
    if root is not None:
        settings["data_root"] = str(root)
    return ["--cfg-options"] + [
        f"{key}={str(value).replace(' ', '')}" for key, value in settings.items()
    ]


def run(*command, cwd, fails=False):
    """Return what a python command printed; it must end as expected."""
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(REPO))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
    )
    out = result.stdout[-20000:] + result.stderr
    assert (result.returncode != 0) == fails, out
    return out


def test_mmdets_own_tools_train_and_test(tmp_path, mini_lvis):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini_lvis").symlink_to(mini_lvis)
    work = tmp_path / "work"
    schedule = {"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1}
    out = run(
        mmdets("train.py"),
        CONFIG,
        "--work-dir",
        work,
        *options(**schedule),
        cwd=tmp_path,
    )
    assert "class frequencies read from the training data: 40 classes" in out
    out = run(
        mmdets("test.py"),
        CONFIG,
        work / "epoch_1.pth",
        "--work-dir",
        work / "test",
        *options(),
        cwd=tmp_path,
    )
    for name in ("bbox_AP", "bbox_APr", "segm_APc", "segm_APf"):
        assert re.search(rf"lvis/{name}: -?\d", out), name


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory, mini_lvis):
    """Kill a training in the middle of its second epoch, and resume it."""
    root = tmp_path_factory.mktemp("killed")
    work = root / "work"
    command = [
        *(sys.executable, "-W", "ignore", REPO / "tools/train.py", CONFIG),
        *("--work-dir", work),
        *options(
            mini_lvis,
            **{
                "train_cfg.max_epochs": 3,
                "train_cfg.val_interval": 9,
                "default_hooks.logger.interval": 1,
            },
        ),
    ]
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(REPO))
    log = root / "first.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            list(map(str, command)), cwd=root, env=env, stdout=file, stderr=file
        )
        deadline = time.time() + 300
        while "Epoch(train) [2][2/" not in log.read_text():
            assert process.poll() is None and time.time() < deadline, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = torch.load(work / "epoch_1.pth")
    out = run(*command[3:], "--resume", cwd=root)
    return work, before, out


def test_killed_training_resumes_from_its_last_checkpoint(killed_and_resumed):
    work, before, out = killed_and_resumed
    assert "resumed epoch: 1" in out
    after = torch.load(work / "epoch_3.pth")
    assert after["meta"]["epoch"] == 3
    assert after["meta"]["iter"] == 3 * before["meta"]["iter"]
    # The log goes on: one entry an iteration, those of the first epoch included.
    key = next(k for k in before["message_hub"]["log_scalars"] if k.endswith("/loss"))
    first, _ = before["message_hub"]["log_scalars"][key].data
    whole, _ = after["message_hub"]["log_scalars"][key].data
    assert len(first) == before["meta"]["iter"]
    assert len(whole) == after["meta"]["iter"]
    assert np.array_equal(whole[: len(first)], first)
    steps = {int(s["step"]) for s in after["optimizer"]["state"].values()}
    assert steps == {after["meta"]["iter"]}
    assert before["param_schedulers"] and after["param_schedulers"]
    for name in ("lambda_param", "kappa_param"):
        assert f"backbone.relu.{name}" in after["state_dict"]
    assert "roi_head.bbox_head.loss_cls.class_frequency" in after["state_dict"]


def test_errors_come_before_the_model(tmp_path):
    def error_of(*args):
        out = run(*args, cwd=tmp_path, fails=True)
        assert "Traceback" not in out, out
        return out

    train, test = REPO / "tools/train.py", REPO / "tools/test.py"
    text = error_of(train, REPO / "configs/lvis/mask_rcnn_r50_apa.py")
    assert "the train annotations" in text
    assert str(tmp_path / "data/lvis_v1/annotations/lvis_v1_train.json") in text
    assert "expected layout" in text
    assert "no such config file: nowhere.py" in error_of(train, "nowhere.py")
    assert "nowhere.pth: no such file" in error_of(test, CONFIG, "nowhere.pth")
    assert "--out x.json" in error_of(test, CONFIG, "x.pth", "--out", "x.json")


class PinRandomness(Hook):
    """Make every iteration draw the same numbers, whatever came before."""

    def _pin(self, number):
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)

    def before_train_epoch(self, runner):
        self._pin(10_000 + runner.epoch)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._pin(20_000 + runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._pin(30_000 + runner.iter)


def make_runner(root, work, launcher="none", **settings):
    """Return a small runner of the mini-LVIS config."""
    from apa_mmdet.datasets import set_data_root
    from apa_mmdet.engine.launch import build_runner

    cfg = Config.fromfile(CONFIG)
    set_data_root(cfg, str(root))
    cfg.merge_from_dict(
        {
            **SMALL,
            "work_dir": str(work),
            "launcher": launcher,
            "randomness": dict(seed=0),
            "experiment_name": f"run_{time.time_ns()}",
            "train_cfg.val_interval": 9,
            **settings,
        }
    )
    return build_runner(cfg)


def test_resuming_gives_the_weights_of_an_uninterrupted_run(tmp_path, mini_lvis):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    weights = []
    try:
        for work, stops in (("straight", (2,)), ("resumed", (1, 2))):
            for number, epochs in enumerate(stops):
                runner = make_runner(
                    mini_lvis,
                    tmp_path / work,
                    resume=number > 0,
                    # The schedule is that of two epochs, wherever the run stops.
                    **{"train_cfg.max_epochs": epochs, "max_epochs": 2},
                )
                runner.register_hook(PinRandomness())
                runner.train()
            weights.append(copy.deepcopy(runner.model.state_dict()))
    finally:
        torch.set_num_threads(threads)
    straight, resumed = weights
    moved = 0
    for key, value in straight.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=1e-6, msg=key)
        moved += key.endswith("_param")
    assert moved == 36


def test_two_processes(tmp_path, mini_lvis):
    """What happens in each process is in _worker, below."""
    out = run(
        *("-m", "torch.distributed.run", "--nproc_per_node=2"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
        *(__file__, mini_lvis, tmp_path / "work"),
        cwd=tmp_path,
    )
    assert out.count("worker is done") == 2


def _worker(root, work):
    runner = make_runner(root, work, launcher="pytorch", **{"train_cfg.max_epochs": 1})
    assert not runner.model.find_unused_parameters
    runner.train()
    model = runner.model.module
    frequency = model.roi_head.bbox_head.loss_cls.class_frequency
    assert frequency.any()
    _assert_same_everywhere(frequency)
    for param in model.parameters():
        _assert_same_everywhere(param.detach())
    _compare_with_the_joint_batch()
    print("worker is done")


def _assert_same_everywhere(tensor):
    other = tensor.clone()
    dist.broadcast(other, src=0)
    assert torch.equal(tensor, other)


def _compare_with_the_joint_batch():
    from apa_mmdet.models import APAResNet

    torch.manual_seed(0)
    alone = APAResNet(18, base_channels=8)
    alone.train()
    together = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(alone))
    joint = torch.randn(4, 3, 64, 64)
    half = joint.chunk(2)[dist.get_rank()]
    for model, images in ((alone, joint), (together, half)):
        sum(F.huber_loss(x, torch.ones_like(x)) for x in model(images)).backward()
    pairs = zip(alone.named_parameters(), together.module.parameters())
    compared = 0
    for (key, param), other in pairs:
        if key.endswith(("lambda_param", "kappa_param")):
            torch.testing.assert_close(other.grad, param.grad, rtol=1e-5, atol=1e-7)
            compared += 1
    assert compared == 34


if __name__ == "__main__":
    _worker(sys.argv[1], sys.argv[2])
