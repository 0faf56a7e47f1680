"""Fixtures that several test files share."""

import random
import runpy
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from apa_mmdet.datasets.mini_lvis import make_mini_lvis

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def restore_global_state():
    """A Runner sets the default scope and the seeds of the process, our tools more."""
    scopes = dict(DefaultScope._instance_dict)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    torch.set_flush_denormal(False)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture(scope="session")
def repo():
    """The checkout."""
    return REPO


@pytest.fixture(scope="session")
def load_tool():
    """The function that imports a tool by its path below tools/, without running it."""

    def load(path):
        spec = spec_from_file_location(Path(path).stem, REPO / "tools" / path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """The function that runs a tool of tools/analysis_tools in this process.

    It takes the tool's name and arguments, and returns what the tool printed.
    """

    def run(name, *args):
        path = str(REPO / "tools/analysis_tools" / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, args)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="session")
def mini_lvis(tmp_path_factory):
    """The folder of the smallest mini-LVIS."""
    root = tmp_path_factory.mktemp("data") / "mini_lvis"
    make_mini_lvis(root, num_train=375, num_val=60, image_size=96)
    return root
