"""AlignmentHook: fitted values, what stays untouched, resuming, errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn

from apa_mmdet.analysis.fit import fit_apa
from apa_mmdet.engine import AlignmentHook, alignment_hook
from apa_mmdet.layers import AGLU, APA
from apa_mmdet.models import APALoss
from apa_mmdet.ops import apa

NUM_CLASSES = 3
# The hook passes this many batches of the 48 images.
BATCHES = 12
CHECKPOINT = dict(type="CheckpointHook", interval=2, by_epoch=False)


@DATASETS.register_module(force=True)
class AlignmentToy(BaseDataset):
    """Rows of noise with a label each; each read draws from numpy's global state."""

    def load_data_list(self):
        return [dict(index=i) for i in range(48)]

    def prepare_data(self, idx):
        draws = np.random.default_rng(idx).gumbel(size=(40, 4)) + np.random.rand()
        labels = torch.arange(40) % (NUM_CLASSES + 1)
        return dict(inputs=torch.tensor(draws, dtype=torch.float32), labels=labels)


class Model(BaseModel):
    """A norm, an AGLU, a gate and a classifier with APALoss."""

    def __init__(self, learnable="shared", spread=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(4)
        self.act = AGLU(num_parameters=4, init="relu")
        self.gate = APA()
        self.fc_cls = nn.Linear(4, NUM_CLASSES)
        nn.init.normal_(self.fc_cls.weight, std=spread)
        self.loss_cls = APALoss(NUM_CLASSES, learnable=learnable)

    def forward(self, inputs, labels, mode):
        if dist.is_initialized():  # as SyncBN and many losses do
            dist.all_reduce(torch.zeros(1))
        x = self.act(self.norm(torch.cat(inputs)))
        logits = self.fc_cls(x * self.gate(x))
        return dict(loss=self.loss_cls(logits, torch.cat(labels)))


@pytest.fixture(autouse=True)
def all_values(monkeypatch):
    """Fit all values instead of a sample, to compare exactly."""
    monkeypatch.setattr(alignment_hook, "_PER_FIT", 100_000)


def runner(work_dir, hook, model=None, max_iters=2, **kwargs):
    return Runner(
        model=model or Model(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type="InfiniteSampler", shuffle=True),
            dataset=dict(type="AlignmentToy", pipeline=[]),
        ),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)),
        custom_hooks=[] if hook is None else [hook],
        default_hooks=dict(checkpoint=CHECKPOINT),
        default_scope="mmdet",
        log_level="ERROR",
        experiment_name=f"alignment in {work_dir}",
        **kwargs,
    )


def record(model, name):
    """Return a list that grows by what a site is called with."""
    calls = []
    module = model.get_submodule(name)
    module.register_forward_pre_hook(lambda _, args: calls.append(args))
    return calls


def parameters(module):
    return module.lambda_param.detach().clone(), module.kappa_param.detach().clone()


def test_a_gate_becomes_the_distribution_function_of_its_input(tmp_path):
    model = Model()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    calls = record(model, "gate")
    run = runner(tmp_path, AlignmentHook(classifiers=False), model)
    run.train()
    values = torch.cat([args[0].reshape(-1) for args in calls[:BATCHES]]).numpy()
    assert len(values) == 48 * 40 * 4
    fit = fit_apa(values, mu=0.0)
    lam, kappa = parameters(model.gate)
    assert lam.item() == pytest.approx(fit.lam, rel=1e-6)
    assert kappa.item() == pytest.approx(fit.kappa, rel=1e-6)
    for name, value in model.state_dict().items():
        if not name.startswith(("gate", "norm")):
            assert torch.equal(value, start[name]), name
    (found,) = json.loads((tmp_path / "alignment.json").read_text())["0"]
    assert found["site"] == "gate" and found["lam"] == pytest.approx(lam.item())
    z = torch.from_numpy(values)
    before = apa(z, start["gate.lambda_param"], start["gate.kappa_param"])
    change = (apa(z, lam, kappa) - before).norm() / before.norm()
    assert found["change"] == pytest.approx(change.item(), rel=1e-5)
    assert run.message_hub.get_info("alignment") == {"0": [found]}


def test_only_the_aligned_parameters_change(tmp_path):
    """Data order, random states and norms' statistics are those of a run without."""
    states = []
    for hook in (None, AlignmentHook(classifiers=False)):
        run = runner(tmp_path / str(hook is None), hook, randomness=dict(seed=3))
        run.train()
        state = run.model.state_dict()
        states.append((state, torch.rand(3), np.random.rand(3)))
    (plain, *rest), (aligned, *aligned_rest) = states
    for name, value in plain.items():
        assert torch.equal(value, aligned[name]) != name.startswith("gate."), name
    assert torch.equal(rest[0], aligned_rest[0])
    assert np.array_equal(rest[1], aligned_rest[1])


def test_activations_on_request_per_channel(tmp_path):
    model = Model()
    calls = record(model, "act")
    hook = AlignmentHook(gates=False, classifiers=False, activations="ac*")
    runner(tmp_path, hook, model).train()
    values = torch.cat([args[0] for args in calls[:BATCHES]]).numpy()
    fits = [fit_apa(column, mu=0.0) for column in values.T]
    lam, kappa = parameters(model.act)
    torch.testing.assert_close(lam, torch.tensor([fit.lam for fit in fits]))
    torch.testing.assert_close(kappa, torch.tensor([fit.kappa for fit in fits]))
    assert len(set(kappa.tolist())) == 4


@pytest.mark.parametrize("learnable", ["shared", "class"])
def test_a_classifier_keeps_its_mean_scores(tmp_path, learnable):
    model = Model(learnable)
    calls, bias = record(model, "loss_cls"), model.fc_cls.bias.detach().clone()
    runner(tmp_path, AlignmentHook(gates=False), model).train()
    logits = torch.cat([args[0] for args in calls[:BATCHES]])
    loss, shift = model.loss_cls, model.fc_cls.bias.detach() - bias
    before = apa(logits, torch.zeros(1), torch.ones(1))
    after = apa(logits + shift, loss.lambda_param, loss.kappa_param)
    axis = 0 if learnable == "class" else (0, 1)
    torch.testing.assert_close(after.mean(axis), before.mean(axis), rtol=1e-4, atol=0)
    columns = logits if learnable == "class" else logits.reshape(-1, 1)
    fits = [fit_apa(column) for column in columns.numpy().T]
    expected = torch.tensor([[fit.lam, fit.kappa] for fit in fits])
    found = torch.stack(parameters(loss), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_that_has_learnt_nothing_is_left(tmp_path):
    model = Model(spread=0.0001)
    runner(tmp_path, AlignmentHook(gates=False), model).train()
    lam, kappa = parameters(model.loss_cls)
    assert (lam.item(), kappa.item()) == (0.0, 1.0)
    (found,) = json.loads((tmp_path / "alignment.json").read_text())["0"]
    assert found["lam"] is None and "all classes the same" in found["reason"]
    # The same logit for all classes varies from one proposal to another.
    model = Model()
    nn.init.constant_(model.fc_cls.weight, 10.0)
    runner(tmp_path / "constant", AlignmentHook(gates=False), model).train()
    assert parameters(model.loss_cls)[1].item() == 1.0


def test_pairs_that_cannot_be_fitted_are_kept(tmp_path):
    model = Model()
    model.norm.weight.data[2] = 0.0
    hook = AlignmentHook(gates=False, classifiers=False, activations="act")
    runner(tmp_path, hook, model).train()
    kappa = parameters(model.act)[1]
    assert kappa[2] == 50 and (kappa[[0, 1, 3]] < 10).all()
    (found,) = json.loads((tmp_path / "alignment.json").read_text())["0"]
    assert found["reason"].startswith("for 1 of 4 pairs: only 1 of the")


def test_resuming_does_not_fit_again(tmp_path):
    hook = dict(type="AlignmentHook", num_images=48)
    runner(tmp_path, hook, max_iters=2).train()
    saved = (tmp_path / "alignment.json").read_text()
    checkpoint = torch.load(tmp_path / "iter_2.pth")["state_dict"]
    model = Model()
    resumed = runner(tmp_path, hook, model, max_iters=4, resume=True)
    resumed.train()
    assert resumed.iter == 4
    for value, name in zip(parameters(model.gate), ("lambda_param", "kappa_param")):
        assert torch.equal(value, checkpoint[f"gate.{name}"])
    assert (tmp_path / "alignment.json").read_text() == saved
    assert resumed.message_hub.get_info("alignment") == json.loads(saved)


def test_later_iterations(tmp_path):
    model = Model()
    runner(tmp_path, AlignmentHook(at=(0, 2)), model, max_iters=3).train()
    saved = json.loads((tmp_path / "alignment.json").read_text())
    assert list(saved) == ["0", "2"]
    assert saved["2"][0]["old_lam"] == pytest.approx(saved["0"][0]["lam"])


def test_processes_share_the_images_and_agree(tmp_path):
    command = [sys.executable, "-W", "ignore", __file__, str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    aligned = [key for key in first if key.endswith("a_param") and "act" not in key]
    assert len(aligned) == 4
    for key in [*aligned, "fc_cls.bias"]:
        assert torch.equal(first[key], second[key]), key
    saved = json.loads((tmp_path / "run/alignment.json").read_text())["0"]
    gate, classifier = saved
    assert (gate["values"], classifier["values"]) == (24 * 40 * 4, 24 * 40)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(at=(-1,)), r"at=\(-1,\), expected iterations >= 0"),
        (dict(at=True), r"at=\(True,\), expected iterations >= 0"),
        (dict(num_images=0), "num_images=0, expected an integer >= 1"),
    ],
)
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AlignmentHook(**kwargs)


def test_iterations_after_the_end_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"at=\(0, 2\), expected iterations below the 2"
    ):
        runner(tmp_path, AlignmentHook(at=(0, 2))).train()


def test_modes_of_submodules_are_restored():
    model = Model()
    model.norm.eval()
    with alignment_hook._undisturbed(model):
        assert model.norm.training
    assert model.training and not model.norm.training


def test_nothing_to_align():
    with pytest.raises(ValueError, match="match none of the model's 1 AGLU .*'act'"):
        AlignmentHook(activations=["backbone.*"]).sites(Model())
    with pytest.raises(ValueError, match="found nothing to align"):
        AlignmentHook().sites(nn.Linear(2, 2))


def _train_as(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    model = Model("class")
    runner(Path(folder, "run"), AlignmentHook(num_images=25), model).train()
    torch.save(model.state_dict(), Path(folder, f"{rank}.pth"))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    context = torch.multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_train_as, args=(rank, sys.argv[1])) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
