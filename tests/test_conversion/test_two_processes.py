"""A converted model that two processes train as one does: DDP and FSDP2."""

import copy
import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from apa_mmdet.conversion import convert_activations
from apa_mmdet.layers import AGLU
from apa_mmdet.optim import param_groups


class Block(nn.Module):
    """A gated layer as Llama's, and a ReLU in two places."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(8, 8) for _ in range(3))
        self.act = nn.SiLU()
        self.relu = nn.ReLU()

    def forward(self, x):
        x = x + self.down(self.act(self.gate(x)) * self.up(x))
        return self.relu(self.down(self.relu(x)))


def build():
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), nn.Linear(8, 3))
    convert_activations(model, init=dict(ReLU=dict(lam=1.0, kappa=5.0)))
    return model


def train(model, inputs):
    """Take three steps, and return the loss of each."""
    optimizer = torch.optim.AdamW(param_groups(model, 0.1), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(inputs).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def shard(model, **options):
    mesh = init_device_mesh("cpu", (2,))
    for part in (*model[:2], model):
        fully_shard(part, mesh=mesh, **options)
    return model


def whole(model):
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def make_inputs():
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(1))


def _process(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", store, timedelta(minutes=2), rank=rank, world_size=2
    )
    mine = make_inputs().chunk(2)[rank]
    seen = {}
    model = build()
    train(DistributedDataParallel(model), mine)
    seen["ddp"] = model.state_dict()

    model = shard(build())
    train(model, mine)
    seen["fsdp"] = whole(model)

    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard(build(), mp_policy=bf16)
    train(model, mine)
    seen["fsdp in bf16"] = whole(model)

    with torch.device("meta"):
        model = build()
    shard(model).to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, AGLU):
            module.reset_parameters()
    seen["fsdp from meta"] = whole(model)
    dist.destroy_process_group()
    return seen


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What one process has trained, and what two have, by how."""
    folder = tmp_path_factory.mktemp("two_processes")
    second = subprocess.Popen([sys.executable, "-W", "ignore", __file__, folder])
    seen = _process(0, folder)
    assert second.wait(timeout=60) == 0
    model = build()
    start = copy.deepcopy(model.state_dict())
    losses = train(model, make_inputs())
    assert losses[2] < losses[0]
    return start, model.state_dict(), seen


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(trained, how):
    start, expected, seen = trained
    torch.testing.assert_close(seen[how], expected, atol=1e-5, rtol=1e-5)
    moved = [name for name in expected if not expected[name].equal(start[name])]
    assert moved == list(expected)


def test_compute_in_bfloat16_keeps_the_parameters_in_float32(trained):
    _, expected, seen = trained
    for name, value in seen["fsdp in bf16"].items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], atol=0.05, rtol=0)


def test_sharded_on_the_meta_device_and_reset(trained):
    start, _, seen = trained
    own = [name for name in start if name.endswith(("lambda_param", "kappa_param"))]
    assert len(own) == 12
    for name in own:
        assert seen["fsdp from meta"][name].equal(start[name]), name


if __name__ == "__main__":
    _process(1, sys.argv[1])
    os._exit(0)  # gloo's threads may abort an interpreter that shuts down
