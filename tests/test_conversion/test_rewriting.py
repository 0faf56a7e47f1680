"""A converted module is still an ordinary one: copied, saved, compiled, debugged."""

import copy
import functools
import importlib
import io
import re
import sys
import traceback

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apa_mmdet.conversion import ActivationSites, convert_activations
from apa_mmdet.layers import AGLU


class Block(nn.Module):
    """A block."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU()

    def forward(self, x, scale: float = 1.0):
        x = self.relu(self.fc1(x))
        return scale * F.gelu(self.relu(self.fc2(x)))


@pytest.fixture
def pair():
    torch.manual_seed(0)
    model = Block()
    convert_activations(model, init="silu")
    return model, torch.randn(8, 4)


def test_it_is_still_of_its_class(pair):
    model, _ = pair
    assert isinstance(model, Block)
    assert type(model).__name__ == "Block" and type(model).__doc__ == "A block."
    assert isinstance(model.relu, ActivationSites)


def test_the_original_class_is_untouched(pair):
    other = Block()
    assert type(other) is Block and type(other.relu) is nn.ReLU
    x = pair[1]
    expected = F.gelu(other.fc2(other.fc1(x).relu()).relu())
    torch.testing.assert_close(other(x), expected)


def test_equal_layouts_share_one_class(pair):
    other = Block()
    convert_activations(other)
    assert type(other) is type(pair[0])


def test_copied(pair):
    model, x = pair
    other = copy.deepcopy(model)
    nn.init.constant_(other.relu["1"].kappa_param, 3.0)
    assert model.relu["1"].kappa_param.item() == 1.0
    assert not torch.equal(other(x), model(x))
    assert other.conversion_report == model.conversion_report


def test_pickled(pair):
    model, x = pair
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    torch.testing.assert_close(other(x, scale=2.0), 2 * model(x))
    assert type(other) is type(model)


def test_a_state_dict_goes_both_ways(pair):
    model, x = pair
    other = Block()
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all(key.endswith(("lambda_param", "kappa_param")) for key in unexpected)
    again = Block()
    convert_activations(again)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), model(x))


def test_compiled_without_a_break(pair):
    model, x = pair
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_a_traceback_shows_the_original_line(pair):
    model, _ = pair
    try:
        model(torch.randn(8, 5))
    except RuntimeError as error:
        frames = traceback.extract_tb(error.__traceback__)
    assert any(
        frame.filename == __file__ and frame.line == "x = self.relu(self.fc1(x))"
        for frame in frames
    )


def test_a_call_from_outside_is_refused(pair):
    """It belongs to neither site."""
    model, x = pair
    with pytest.raises(RuntimeError, match=r"Block\.relu has no site.*\['0', '1'\]"):
        model.relu(x)


def test_a_call_that_a_condition_excluded_is_refused():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
            self.relu = nn.ReLU()
            self.deep = False

        def forward(self, x):
            if self.deep:
                x = self.relu(x)
            return self.relu(self.fc2(self.relu(self.fc1(x))))

    model = Model()
    assert len(convert_activations(model).sites) == 2
    model(torch.randn(8, 4))
    model.deep = True
    with pytest.raises(RuntimeError, match="Model.relu has no site.*a condition"):
        model(torch.randn(8, 4))


def test_a_forward_of_the_instance_is_not_rewritten():
    model, x = Block(), torch.randn(8, 4)
    model.forward = lambda x: model.fc2(model.relu(model.fc1(x)))
    report = convert_activations(model, init="silu")
    assert [site.path for site in report.sites] == ["relu"]
    assert [item.path for item in report.left] == ["forward()"]
    torch.testing.assert_close(model(x), model.fc2(F.silu(model.fc1(x))))


RELEASED = """
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.fc2(self.relu(self.fc1(x))))


class Derived(Base):
    pass
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("\n\n\nclass Base", "\n\n\n\nclass Base"),  # the calls move
        ("x))))", "x)))) + self.relu(x)"),  # a call is added after the known ones
        ("def forward(", "def predict("),
    ],
)
@pytest.mark.parametrize("name", ["Base", "Derived"])
def test_a_pickle_of_another_release_is_refused(
    tmp_path, monkeypatch, name, before, after
):
    """Its calls would go to the wrong sites, or to the fixed activation."""
    file = tmp_path / "model.pkl"
    for release, source in (
        ("old", RELEASED),
        ("new", RELEASED.replace(before, after)),
    ):
        folder = tmp_path / release
        folder.mkdir()
        (folder / "released.py").write_text(source)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            patch.delitem(sys.modules, "released", raising=False)
            if release == "old":
                model = getattr(importlib.import_module("released"), name)()
                convert_activations(model)
                torch.save(model, file)
                assert type(torch.load(file, weights_only=False)) is type(model)
                continue
            with pytest.raises(RuntimeError) as caught:
                torch.load(file, weights_only=False)
    assert re.search(r"forward\(\) of released\.(Base|Derived)", str(caught.value))
    assert "load a state_dict" in str(caught.value)


def test_enclosing_scopes_are_shared():
    """A variable that changes later changes for the converted module too."""
    factor = 3.0

    class Model(nn.Module):
        def forward(self, x):
            return F.silu(x) * factor

    model, x = Model(), torch.randn(8, 4)
    convert_activations(model)
    torch.testing.assert_close(model(x), 3 * F.silu(x))
    factor = 5.0
    torch.testing.assert_close(model(x), 5 * F.silu(x))


CALLS = []


def noted(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        CALLS.append(function.__name__)
        return function(*args, **kwargs)

    return wrapper


def test_decorators_defaults_and_closures_are_retained():
    factor = 3.0

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.step(x) * factor

        @noted
        def step(self, x, offset=torch.ones(4), *, scale=2.0):  # noqa: B008
            return F.silu(self.fc(x)) * scale + factor * offset

    model = Model()
    x = torch.randn(8, 4)
    before = model(x)
    CALLS.clear()
    convert_activations(model)
    assert isinstance(model.silu, AGLU)
    torch.testing.assert_close(model(x), before)
    assert CALLS == ["step"]


def test_a_decorator_that_cannot_be_applied_again():
    """It is local to the function that defines the class: the method stays as it is."""

    def local(function):
        @functools.wraps(function)
        def wrapper(self, x):
            return function(self, x) + 1

        return wrapper

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.act = nn.SiLU()

        @local
        def forward(self, x):
            return F.silu(self.act(self.act(self.fc(x))))

    model = Model()
    x = torch.randn(8, 4)
    before = model(x)
    report = convert_activations(model)
    assert [site.path for site in report.sites] == ["act"]
    torch.testing.assert_close(model(x), before)
    assert [item.path for item in report.left] == ["forward()"]
    assert "could not be read" in report.left[0].reason
