"""Training a converted detector: Runner, averages, checkpointing, two processes."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmdet.engine.hooks import MeanTeacherHook
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hooks import EMAHook, Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner, load_checkpoint
from torch import nn
from torch.utils.data import DataLoader

from apa_mmdet.layers import AGLU
from apa_mmdet.testing.small_detectors import FASTER_RCNN, RETINANET, small_config

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_scope_and_thread():
    """With one thread, sums are taken in the same order each time."""
    register_all_modules(init_default_scope=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(base, converted=True, **settings):
    torch.manual_seed(0)
    return MODELS.build(small_config(base, converted, **settings).model)


def is_adaptive(name):
    return name.endswith((".lambda_param", ".kappa_param"))


def adaptive(state):
    return {name: value for name, value in state.items() if is_adaptive(name)}


def scatter(model, start=0):
    """Give each activation a lambda and kappa of its own."""
    for i, module in enumerate(m for m in model.modules() if isinstance(m, AGLU)):
        nn.init.constant_(module.lambda_param, 0.5 + 0.02 * (i + start))
        nn.init.constant_(module.kappa_param, 1 + 0.1 * (i + start))
    return model


def images(count=4):
    batch = demo_mm_inputs(count, (3, 64, 64), num_classes=3)
    return [dict(inputs=i, data_samples=s) for i, s in zip(*batch.values())]


def make_runner(work, epochs=2, **settings):
    """Return a runner whose epochs of two iterations see the same data."""
    return Runner(
        model=settings.pop("model", small_config(RETINANET).model),
        work_dir=str(work),
        train_dataloader=DataLoader(images(), batch_size=2, collate_fn=pseudo_collate),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.05),
            clip_grad=dict(max_norm=35),
        ),
        default_scope="mmdet",
        experiment_name=f"{work.parent.name}_{work.name}_{epochs}",
        randomness=dict(seed=0),
        log_level="WARNING",
        **settings,
    )


class Snapshots(Hook):
    """Keep the states of model and optimizer at the start, and of the model later."""

    priority = "VERY_LOW"

    def __init__(self):
        self.after = []

    def before_train(self, runner):
        self.model = copy.deepcopy(runner.model.state_dict())
        self.averages = [
            copy.deepcopy(hook.ema_model.module.state_dict())
            for hook in runner.hooks
            if isinstance(hook, EMAHook)
        ]
        self.optimizer = copy.deepcopy(runner.optim_wrapper.state_dict())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.after.append(copy.deepcopy(runner.model.state_dict()))


def train(work, **settings):
    runner = make_runner(work, **settings)
    snapshots = Snapshots()
    runner.register_hook(snapshots)
    runner.train()
    return runner, snapshots


# ---------------------------------------------------------------------------- Runner
def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("hooks", [[], [dict(type="EMAHook")]])
def test_load_from_an_unconverted_checkpoint(tmp_path, capsys, hooks):
    path = tmp_path / "plain.pth"
    plain = build(RETINANET, converted=False).state_dict()
    torch.save(dict(state_dict=plain, meta={}), path)
    _, snapshots = train(
        tmp_path / "work", epochs=1, load_from=str(path), custom_hooks=hooks
    )
    models = [snapshots.model, *snapshots.averages]
    for state in models:
        assert_same({k: v for k, v in state.items() if not is_adaptive(k)}, plain)
        for name, value in adaptive(state).items():
            assert value.item() == (1 if name.endswith("lambda_param") else 50), name
    # The Runner does not pass a logger on, so what does not match is printed.
    lines = capsys.readouterr().out.splitlines()
    missing = [line for line in lines if line.startswith("missing keys in source")]
    assert len(missing) == len(models) == 1 + len(hooks)
    for line in missing:
        names = set(line.split(": ")[1].split(", "))
        assert names == set(adaptive(snapshots.model))
    assert not any("unexpected key" in line for line in lines)


def test_resumes(tmp_path):
    straight, _ = train(tmp_path / "straight")
    _, first = train(tmp_path / "resumed", epochs=1)
    runner, second = train(tmp_path / "resumed", resume=True)
    saved = torch.load(tmp_path / "resumed/epoch_1.pth")
    assert_same(second.model, saved["state_dict"])
    assert_same(second.model, first.after[-1])
    assert second.optimizer["param_groups"] == saved["optimizer"]["param_groups"]
    states, expected = second.optimizer["state"], saved["optimizer"]["state"]
    assert list(states) == list(expected)
    for number, state in expected.items():
        assert_same(states[number], state)
    # The weights, and a pair for each of the 16 activations that are not frozen.
    trainable = [n for n, p in runner.model.named_parameters() if p.requires_grad]
    moved = [name for name in trainable if is_adaptive(name)]
    assert len(moved) == 2 * 16 and len(expected) == len(trainable)
    for name in moved:
        assert not torch.equal(first.after[-1][name], first.model[name]), name
    assert_same(runner.model.state_dict(), straight.model.state_dict())


def test_exponential_moving_average(tmp_path):
    momentum, gamma = 0.2, 3
    ema = dict(
        type="EMAHook",
        ema_type="ExpMomentumEMA",
        momentum=momentum,
        gamma=gamma,
        update_buffers=True,
    )
    _, snapshots = train(tmp_path / "work", custom_hooks=[ema])
    average = adaptive(snapshots.after[0])
    for step, source in enumerate(snapshots.after[1:], 1):
        m = (1 - momentum) * math.exp(-(1 + step) / gamma) + momentum
        average = {k: (1 - m) * v + m * source[k] for k, v in average.items()}
    saved = torch.load(tmp_path / "work/epoch_2.pth")
    actual = adaptive(saved["state_dict"])
    assert len(actual) == len(average) == 2 * 21
    for name, value in average.items():
        torch.testing.assert_close(actual[name], value, msg=name)
        source = saved["ema_state_dict"][f"module.{name}"]
        assert torch.equal(source, snapshots.after[-1][name])
    assert any(not torch.equal(actual[n], snapshots.after[-1][n]) for n in actual)


@pytest.mark.parametrize(
    "base",
    [
        "rtmdet/rtmdet_tiny_8xb32-300e_coco.py",  # norm and bias by type
        "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",  # custom_keys
        FASTER_RCNN,  # no paramwise_cfg
    ],
)
def test_weight_decay(base):
    small = {}
    if "swin" in base:
        small = {
            "backbone.embed_dims": 12,
            "neck.in_channels": [12, 24, 48, 96],
            "roi_head.bbox_head.fc_out_channels": 32,
        }
    decays = []
    for converted in (True, False):
        model = build(base, converted, **small)
        wrapper = build_optim_wrapper(
            model, small_config(base, converted).optim_wrapper
        )
        names = {id(param): name for name, param in model.named_parameters()}
        decays.append(
            {
                names[id(param)]: group["weight_decay"]
                for group in wrapper.optimizer.param_groups
                for param in group["params"]
            }
        )
    actual, expected = decays
    own = adaptive(actual)
    # With a paramwise_cfg, MMEngine leaves frozen parameters out.
    trainable = sum(site.trainable for site in build(base).conversion_report.sites)
    assert len(own) >= 2 * trainable > 20
    assert set(own.values()) == {0}
    assert {k: v for k, v in actual.items() if k not in own} == expected
    assert max(expected.values()) > 0


# ---------------------------------------------------------------------- mean teacher
def semi(way, base_type="SoftTeacher"):
    detector = small_config(FASTER_RCNN, converted=way == "inside").model
    cfg = dict(
        type=base_type,
        detector=detector,
        data_preprocessor=dict(
            type="MultiBranchDataPreprocessor",
            data_preprocessor=detector.data_preprocessor,
        ),
        semi_train_cfg=dict(
            freeze_teacher=True,
            sup_weight=1.0,
            unsup_weight=4.0,
            pseudo_label_initial_score_thr=0.0,
            rpn_pseudo_thr=0.0,
            cls_pseudo_thr=0.0,
            reg_pseudo_thr=1e3,
            jitter_times=2,
            jitter_scale=0.06,
            min_pseudo_bbox_wh=(1e-2, 1e-2),
        ),
        semi_test_cfg=dict(predict_on="teacher"),
    )
    if way == "around":
        cfg.update(type="APADetector", base_type=base_type)
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(cfg))


@pytest.mark.parametrize("base_type", ["SoftTeacher", "SemiBaseDetector"])
@pytest.mark.parametrize("way", ["around", "inside"])
def test_mean_teacher(way, base_type, tmp_path):
    model = semi(way, base_type)
    student, teacher = model.student, model.teacher
    # MeanTeacherHook pairs the parameters by their position.
    names = [name for name, _ in student.named_parameters()]
    assert names == [name for name, _ in teacher.named_parameters()]
    assert names == [name for name, _ in build(FASTER_RCNN).named_parameters()]
    assert len(adaptive(dict.fromkeys(names))) == 2 * 20
    assert not any(param.requires_grad for param in teacher.parameters())
    trainable = [n for n, p in build(FASTER_RCNN).named_parameters() if p.requires_grad]
    assert trainable == [n for n, p in student.named_parameters() if p.requires_grad]

    path = str(tmp_path / "plain.pth")
    torch.save(build(FASTER_RCNN, converted=False).state_dict(), path)
    load_checkpoint(model, path, map_location="cpu")
    for key, value in torch.load(path).items():
        assert torch.equal(student.state_dict()[key], value)
        assert torch.equal(teacher.state_dict()[key], value)

    scatter(student)
    scatter(teacher, start=5)
    before = copy.deepcopy(teacher.state_dict())
    MeanTeacherHook().momentum_update(model, 0.25)
    after, source = teacher.state_dict(), student.state_dict()
    for name in names:
        expected = 0.75 * before[name] + 0.25 * source[name]
        torch.testing.assert_close(after[name], expected, msg=name)
        assert not is_adaptive(name) or not torch.equal(after[name], before[name])


@pytest.mark.parametrize("way", ["around", "inside"])
def test_a_step_with_a_teacher(way):
    model = semi(way).train()
    data = pseudo_collate(images(2))
    for sample in data["data_samples"]:
        sample.set_metainfo(dict(homography_matrix=torch.eye(3).numpy()))
    branches = ("sup", "unsup_teacher", "unsup_student")
    data = {
        key: {branch: copy.deepcopy(value) for branch in branches}
        for key, value in data.items()
    }
    data = model.data_preprocessor(data, True)
    total, _ = model.parse_losses(model(**data, mode="loss"))
    total.backward()
    assert total.isfinite()
    for name, param in model.named_parameters():
        if name.startswith("teacher."):
            assert param.grad is None, name
        elif param.requires_grad:
            assert param.grad.isfinite().all(), name


# ------------------------------------------------------------------------- with_cp
RESNETS = dict(depth=50, base_channels=8)
WITH_CP = {
    "basic": dict(base_type="ResNet", depth=18, base_channels=8),
    "bottleneck": dict(base_type="ResNet", **RESNETS),
    "res2net": dict(base_type="Res2Net", **RESNETS),
    "resnest": dict(base_type="ResNeSt", stem_channels=16, **RESNETS),
    "swin": dict(base_type="SwinTransformer", embed_dims=24, drop_path_rate=0.0),
}


@pytest.mark.parametrize("name", WITH_CP)
def test_with_cp(name):
    """mmdet uses torch's default, reentrant checkpoints."""
    x = torch.randn(2, 3, 64, 64)
    outputs, grads, calls = [], [], []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(type="APADetector", with_cp=with_cp, **copy.deepcopy(WITH_CP[name]))
        )
        scatter(model).train()
        count = [0]
        for module in model.modules():
            if isinstance(module, AGLU):
                module.register_forward_hook(
                    lambda *_, count=count: count.__setitem__(0, count[0] + 1)
                )
        outputs.append(model(x))
        sum(out.square().mean() for out in outputs[-1]).backward()
        grads.append({key: param.grad for key, param in model.named_parameters()})
        calls.append(count[0])
    for out, expected in zip(*reversed(outputs)):
        assert torch.equal(out, expected)
    assert list(grads[1]) == list(grads[0]) and adaptive(grads[0])
    for key, expected in grads[0].items():
        assert expected is not None, key
        torch.testing.assert_close(grads[1][key], expected, msg=key)
    assert calls[1] > calls[0]  # what is checkpointed ran twice


# --------------------------------------------------------------------- two processes
def test_two_processes(tmp_path):
    """What happens in each process is in _worker, below."""
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(REPO))
    command = [
        *("-m", "torch.distributed.run", "--nproc_per_node=2"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", __file__, tmp_path),
    ]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    out = result.stdout[-20000:] + result.stderr
    assert result.returncode == 0, out
    assert out.count("worker is done") == 2, out


def _worker(work):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # MMEngine's own way asks for a GPU
    register_all_modules(init_default_scope=True)
    _train_with_runner(work)
    _compare_gradients()
    _compare_with_the_joint_batch(build(RETINANET))
    # DDP refuses a parameter that takes part in two reentrant checkpoints.
    backbone = dict(base_type="ResNet", depth=50, base_channels=8, with_cp=True)
    _compare_with_the_joint_batch(MODELS.build(dict(type="APADetector", **backbone)))
    print("worker is done")


class _SameEverywhere(Hook):
    """After each step, parameters must be the same on both ranks."""

    seen = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for param in runner.model.parameters():
            _assert_same_everywhere(param.detach())
        assert outputs["loss"].isfinite()
        self.seen += 1


def _assert_same_everywhere(tensor):
    other = tensor.clone()
    dist.broadcast(other, src=0)
    assert torch.equal(tensor, other)


def _train_with_runner(work):
    runner = make_runner(
        Path(work) / "work",
        model=small_config(FASTER_RCNN).model,
        launcher="pytorch",
        cfg=dict(
            model_wrapper_cfg=dict(
                type="MMDistributedDataParallel",
                device_ids=None,
                broadcast_buffers=False,
            )
        ),
    )
    assert isinstance(runner.model, MMDistributedDataParallel)
    assert not runner.model.find_unused_parameters
    hook = _SameEverywhere()
    runner.register_hook(hook)
    runner.register_hook(snapshots := Snapshots())
    runner.train()
    assert hook.seen == 4
    before = adaptive(snapshots.model)
    trainable = [n for n, p in runner.model.named_parameters() if p.requires_grad]
    moved = [n for n in before if not torch.equal(before[n], snapshots.after[-1][n])]
    assert set(moved) == {n for n in trainable if is_adaptive(n)} and len(moved) == 30


def _compare_gradients():
    """Each rank has its own images; the gradients are those of the average."""
    model = build(FASTER_RCNN).train()
    together = MMDistributedDataParallel(copy.deepcopy(model))
    for _ in range(2):
        torch.manual_seed(dist.get_rank())
        data = pseudo_collate(images()[2 * dist.get_rank() :][:2])
        data = model.data_preprocessor(data, True)
        total, _ = model.parse_losses(together(**data, mode="loss"))
        together.zero_grad()
        total.backward()
        compared = 0
        for name, param in together.module.named_parameters():
            if param.requires_grad:
                assert param.grad.isfinite().all(), name
                _assert_same_everywhere(param.grad)
                compared += is_adaptive(name)
        assert compared == 2 * 15


class _MeanOverImages(nn.Module):
    """The mean of the images' own losses, which a detector's is not."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        outputs = self.model(x)
        if isinstance(outputs[0], list):  # scores and boxes
            outputs = [*outputs[0], *outputs[1]]
        return sum(out.square().mean() for out in outputs)


def _compare_with_the_joint_batch(model):
    single = _MeanOverImages(scatter(model)).train()
    together = MMDistributedDataParallel(copy.deepcopy(single))
    torch.manual_seed(0)
    joint = torch.randn(4, 3, 64, 64)
    single(joint).backward()
    together(joint.chunk(2)[dist.get_rank()]).backward()
    compared = 0
    pairs = zip(single.named_parameters(), together.module.parameters())
    for (name, param), other in pairs:
        if param.requires_grad:
            _assert_same_everywhere(other.grad)
            torch.testing.assert_close(
                other.grad, param.grad, rtol=1e-4, atol=1e-6, msg=name
            )
            compared += is_adaptive(name)
    assert compared == 2 * sum(site.trainable for site in model.conversion_report.sites)


if __name__ == "__main__":
    _worker(sys.argv[1])
