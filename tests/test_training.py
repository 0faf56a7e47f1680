"""Training, resuming and testing through the tools, and in several processes."""

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

from apa_mmdet.layers import AGLU
from apa_mmdet.ops import use_implementation

REPO = Path(__file__).parents[1]
CONFIG = str(REPO / "configs/mini_lvis/mask_rcnn_r18_apa.py")
# A few images, narrow layers and few proposals, to take seconds.
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
    # With so few images, LVIS's rare classes are in a larger share of them.
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
    """Run a Python command and return what it printed; check its exit code."""
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
    assert result.returncode == (2 if fails else 0), out
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
    """Training that is killed in the middle of its second epoch, and resumed."""
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
    # The log continues: one entry per iteration, including the first epoch.
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


def test_missing_data_ends_the_program_before_the_model_is_built(tmp_path):
    config = REPO / "configs/lvis/mask_rcnn_r50_apa.py"
    text = run(REPO / "tools/train.py", config, cwd=tmp_path, fails=True)
    assert "Traceback" not in text, text
    assert "the train annotations" in text
    assert str(tmp_path / "data/lvis_v1/annotations/lvis_v1_train.json") in text
    assert "expected layout" in text


class PinRandomness(Hook):
    """Give every iteration its own seed, so that resuming draws the same numbers."""

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
            **copy.deepcopy(settings),  # merging removes _delete_ from them
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
                    # The schedule is for two epochs, wherever the run stops.
                    **{"train_cfg.max_epochs": epochs, "max_epochs": 2},
                )
                runner.register_hook(PinRandomness())
                runner.train()
            weights.append(copy.deepcopy(runner.model.state_dict()))
    finally:
        torch.set_num_threads(threads)
    straight, resumed = weights
    assert straight.keys() == resumed.keys()
    for key, value in straight.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=1e-6, msg=key)


class RecordLosses(Hook):
    """Records the loss of each iteration."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs["loss"]))


def propose_around_annotations(rpn_head):
    """Train the RPN, but let its proposals depend only on the annotations."""
    original = rpn_head.loss_and_predict

    def loss_and_predict(x, samples, proposal_cfg=None):
        losses, proposals = original(x, samples, proposal_cfg=proposal_cfg)
        fixed = []
        for sample, proposed in zip(samples, proposals):
            boxes = sample.gt_instances.bboxes
            sizes = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            boxes = torch.cat([boxes + s * sizes for s in (-0.5, -0.1, 0.1, 0.2, 0.6)])
            scores = torch.ones(len(boxes))
            fixed.append(type(proposed)(bboxes=boxes, scores=scores))
        return losses, fixed

    rpn_head.loss_and_predict = loss_and_predict


class StepBothWays(Hook):
    """Before each iteration, computes it with the plain and the native operators.

    Both start from the same weights, buffers and seed, which are restored afterwards.
    """

    def __init__(self):
        self.loss_differences, self.gradient_differences = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = runner.model
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        results = []
        for implementation in ("plain", "native"):
            torch.manual_seed(runner.iter)
            model.zero_grad()
            with use_implementation(implementation):
                batch = model.data_preprocessor(copy.deepcopy(data_batch), True)
                loss, _ = model.parse_losses(model(**batch, mode="loss"))
                loss.backward()
            used = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            results.append((float(loss), torch.cat(used).double()))
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
        model.zero_grad()
        (plain, plain_grad), (compiled, compiled_grad) = results
        self.loss_differences.append(abs(compiled / plain - 1))
        off = (compiled_grad - plain_grad).norm() / plain_grad.norm()
        self.gradient_differences.append(float(off))


@pytest.mark.slow
def test_plain_and_compiled_kernels_agree_on_each_step_of_training(tmp_path, mini_lvis):
    settings = {
        "train_cfg": dict(_delete_=True, type="IterBasedTrainLoop", max_iters=60),
        "train_cfg.val_interval": 1000,
    }
    runner = make_runner(mini_lvis, tmp_path, **settings)
    both = StepBothWays()
    runner.register_hook(both)
    runner.train()
    losses = np.array(both.loss_differences)
    gradients = np.array(both.gradient_differences)
    print(f"losses differ by {np.median(losses):.1e} (median), {losses.max():.1e}")
    print(f"gradients by {np.median(gradients):.1e} (median), {gradients.max():.1e}")
    assert len(losses) == 60
    assert gradients.max() > 0  # different code ran
    # The loss differs more where rounding decides which boxes are sampled.
    assert (losses < 1e-6).mean() >= 0.9
    assert losses.max() < 1e-2
    assert (gradients < 1e-3).mean() >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("norm_eval", [False, True])
def test_plain_and_compiled_kernels_learn_alike(tmp_path, mini_lvis, norm_eval):
    # Choices that rounding can decide are removed: which boxes NMS and the sampler
    # keep, and the sign of an L1 loss at its kink. With them, two runs of plain torch
    # with one and with two threads diverge as well.
    smooth = dict(_delete_=True, type="SmoothL1Loss", beta=1.0)
    sgd = dict(_delete_=True, type="SGD", lr=3e-4, momentum=0.9, weight_decay=1e-4)
    settings = {
        "train_cfg": dict(_delete_=True, type="IterBasedTrainLoop", max_iters=200),
        "train_cfg.val_interval": 1000,
        "param_scheduler": [],
        "optim_wrapper.optimizer": sgd,
        "model.backbone.norm_eval": norm_eval,
        "model.rpn_head.loss_bbox": smooth,
        "model.roi_head.bbox_head.loss_bbox": smooth,
        "model.train_cfg.rcnn.sampler.num": 1024,
    }
    curves, weights = [], []
    for implementation in ("plain", "native"):
        with use_implementation(implementation):
            runner = make_runner(mini_lvis, tmp_path / implementation, **settings)
            recorder = RecordLosses()
            runner.register_hook(recorder)
            propose_around_annotations(runner.model.rpn_head)
            runner.train()
        curves.append(torch.tensor(recorder.losses, dtype=torch.float64))
        weights.append(runner.model.backbone.conv1.weight.detach())
    plain, compiled = curves
    assert len(plain) == 200
    assert plain[-20:].mean() < 0.8 * plain[:20].mean()
    assert not torch.equal(*weights)  # different code ran
    worst = float((compiled / plain - 1).abs().max())
    print(f"largest difference of 200 losses: {worst:.1e}")
    assert worst < 1e-3


def test_two_processes(tmp_path, mini_lvis):
    """Each process runs _worker, below."""
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
    single = APAResNet(18, base_channels=8)
    single.train()
    together = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(single))
    joint = torch.randn(4, 3, 64, 64)
    half = joint.chunk(2)[dist.get_rank()]
    for model, images in ((single, joint), (together, half)):
        sum(F.huber_loss(x, torch.ones_like(x)) for x in model(images)).backward()
    pairs = zip(single.named_parameters(), together.module.parameters())
    compared = 0
    for (key, param), other in pairs:
        if key.endswith(("lambda_param", "kappa_param")):
            torch.testing.assert_close(other.grad, param.grad, rtol=1e-5, atol=1e-7)
            compared += 1
    assert compared == 2 * sum(isinstance(m, AGLU) for m in single.modules()) > 0


if __name__ == "__main__":
    _worker(sys.argv[1], sys.argv[2])
