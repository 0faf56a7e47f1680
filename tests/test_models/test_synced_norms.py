"""Fused SyncBatchNorms in two processes, against BatchNorms over the joined batch."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn

from apa_mmdet.layers import AGLU
from apa_mmdet.layers.attention import APASELayer
from apa_mmdet.models.backbones.fusion import norm_activation, norm_add_activation
from apa_mmdet.testing.memory import saved_bytes

C = 4
CASES = {
    "float32": {},
    "float64": dict(dtype=torch.float64),
    "bfloat16": dict(dtype=torch.bfloat16, offset=20.0),
    "as many images": dict(sizes=(2, 2)),
    "no images in one": dict(sizes=(0, 3)),
    "one value a channel": dict(dtype=torch.float64, sizes=(1, 1), shape=(1, 1)),
    "cumulative average": dict(momentum=None),
    "not affine": dict(affine=False),
    "not tracked": dict(track_running_stats=False),
    "in evaluation": dict(training=False),
    "groups of one": dict(own_groups=True),
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2}


class Block(nn.Module):
    """A norm with AGLU, and the end of a block with a gate and a second norm."""

    def __init__(self, norm, **options):
        super().__init__()
        self.norm1, self.norm2, last = (norm(C, **options) for _ in range(3))
        self.downsample = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), last)
        self.act1, self.act2 = AGLU(), AGLU(C)
        self.attention = APASELayer(C, 2, dict(type="Sigmoid"))
        self.attention.excitation[1] = nn.SiLU()  # rounding would decide at a kink
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x):
        y = norm_activation(x, self.norm1, self.act1)
        rest = x.sin(), self.downsample, self.attention
        return norm_add_activation(y, self.norm2, self.act2, *rest)


class Reference(Block):
    def forward(self, x):
        y = self.attention(self.norm2(self.act1(self.norm1(x))))
        return self.act2(y + self.downsample(x.sin()))


def train(kind, norm, images, dtype, group=None, training=True, **options):
    """Return what two steps give: values, gradients and statistics."""
    torch.manual_seed(0)
    block = kind(norm, **options).train(training)
    if dtype == torch.float64:
        block.double()
    for module in block.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.process_group = group
    with torch.autocast("cpu", enabled=dtype == torch.bfloat16):
        for _ in range(2):
            x = images.to(dtype, copy=True).requires_grad_()
            y = block(x)
            (y.double() * images.double().cos()).sum().backward()
    of_images = dict(y=y.detach(), x=x.grad)
    gradients = {name: p.grad for name, p in block.named_parameters()}
    return of_images, gradients, dict(block.named_buffers())


def inputs(sizes=(3, 1), shape=(5, 3), offset=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(sizes), C, *shape, generator=generator, dtype=torch.float64)
    return (2 * x + offset).to(dtype).split(sizes)


def arguments(case):
    """Return both processes' images, and the options of :func:`train`."""
    options = dict(dtype=torch.float32) | CASES[case]
    own_groups = options.pop("own_groups", False)
    names = "sizes", "shape", "offset"
    given = {name: options.pop(name) for name in names if name in options}
    return inputs(**given, dtype=options["dtype"]), options, own_groups


def _process(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", store, timedelta(minutes=1), rank=rank, world_size=2
    )
    alone = [dist.new_group([0]), dist.new_group([1])][rank]
    seen = {}
    for case in CASES:
        images, options, own_groups = arguments(case)
        options["group"] = alone if own_groups else None
        seen[case] = train(Block, nn.SyncBatchNorm, images[rank], **options)
    x, modules = torch.randn(8, C, 40, 40), [nn.SyncBatchNorm(C), AGLU()]
    kept = nn.ModuleList(modules).state_dict(keep_vars=True).values()
    size = saved_bytes(lambda: norm_activation(x.requires_grad_() * 1, *modules), kept)
    seen["saved"] = size / x.nbytes
    torch.save(seen, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What each of two processes has trained, by case."""
    folder = tmp_path_factory.mktemp("synced_norms")
    environment = os.environ | dict(PYTHONPATH=str(Path(__file__).parents[2]))
    second = subprocess.Popen([sys.executable, __file__, folder], env=environment)
    _process(0, folder)
    assert second.wait(60) == 0
    return [torch.load(folder / str(rank)) for rank in range(2)]


def compare(found, expected, dtype):
    for name, true in expected.items():
        tolerance = TOLERANCE[dtype]
        atol = tolerance * true.double().abs().max().item()
        torch.testing.assert_close(
            found[name].double(), true.double(), rtol=tolerance, atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does_with_the_joined_batch(trained, case):
    images, options, own_groups = arguments(case)
    dtype = options.pop("dtype")
    seen = [process[case] for process in trained]
    if own_groups:
        for (of_images, gradients, statistics), own in zip(seen, images):
            found = of_images | gradients | statistics
            for part in train(Reference, nn.BatchNorm2d, own, torch.float64, **options):
                compare(found, part, dtype)
        return
    joined = torch.cat(images)
    expected = train(Reference, nn.BatchNorm2d, joined, torch.float64, **options)
    (first, *sums), (second, *other_sums) = seen
    compare({k: torch.cat((first[k], second[k])) for k in first}, expected[0], dtype)
    gradients = {k: sums[0][k] + other_sums[0][k] for k in sums[0]}
    compare(gradients, expected[1], dtype)
    for statistics in (sums[1], other_sums[1]):
        compare(statistics, expected[2], dtype)


def test_keeps_only_its_input(trained):
    assert all(1 <= process["saved"] < 1.01 for process in trained)


if __name__ == "__main__":
    _process(1, sys.argv[1])
    os._exit(0)  # gloo's threads may abort an interpreter that shuts down
