"""Activations that are called without their names are not taken for unused."""

import functools
from functools import cached_property

import pytest
import torch
from torch import nn

from apa_mmdet.conversion import convert_activations


def layers():
    return {"fc": nn.Linear(4, 4), "act": nn.SiLU(), "last": nn.Linear(4, 4)}


class LayerGetter(nn.ModuleDict):
    """As torchvision's IntermediateLayerGetter."""

    def __init__(self):
        super().__init__(layers())

    def forward(self, x):
        out = {}
        for name, module in self.items():
            x = module(x)
            if name == "last":
                out[name] = x
        return out["last"]


class OwnList(nn.ModuleList):
    def __init__(self):
        super().__init__(layers().values())

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


class OwnSequential(nn.Sequential):
    def __init__(self):
        super().__init__(*layers().values())

    def forward(self, x):
        return super().forward(x) + 1


class Indexed(OwnSequential):
    def forward(self, x):
        for i in range(len(self)):
            x = self[i](x)
        return x


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        for name, layer in layers().items():
            self.add_module(name, layer)


class Children(Named):
    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


class Modules(Named):
    def forward(self, x):
        for module in list(self.modules())[1:]:
            x = module(x)
        return x


class Folded(Named):
    def forward(self, x):
        return functools.reduce(lambda y, module: module(y), self.children(), x)


class PrivateDict(Named):
    def forward(self, x):
        for _, module in self._modules.items():
            x = module(x)
        return x


class OfTuple(Named):
    def forward(self, x):
        for module in (self.fc, self.act, self.last):
            x = module(x)
        return x


class FromFunction(Named):
    """A function stored while the module was built."""

    def __init__(self):
        super().__init__()
        self.run = lambda x: self.last(self.act(self.fc(x)))

    def forward(self, x):
        return self.run(x)


def run_children(model, x):
    for module in model.children():
        x = module(x)
    return x


class PassedOn(Named):
    def forward(self, x):
        return run_children(self, x)


@pytest.mark.parametrize(
    "cls",
    [LayerGetter, OwnList, OwnSequential, Indexed, Children, Modules, Folded]
    + [PrivateDict, OfTuple, FromFunction, PassedOn],
)
def test_of_the_module_itself(cls, check):
    expected = "act" if "act" in dict(cls().named_children()) else "1"
    check(cls(), [expected], torch.randn(8, 4), init="silu")


def test_of_a_cached_property(paths):
    class Cached(Named):
        @cached_property
        def prior(self):
            return self.act(self.fc.bias)

        def forward(self, x):
            return self.act(self.fc(x)) + self.prior

    assert paths(convert_activations(Cached())) == ["act"]


class OfDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict(layers())

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x


class OfChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Named()

    def forward(self, x):
        for layer in self.body.children():
            x = layer(x)
        return x


class OfGrandchild(OfChild):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList([Named()])

    def forward(self, x):
        for block in self.body:
            for layer in block.children():
                x = layer(x)
        return x


class OfFoldedChild(OfChild):
    def forward(self, x):
        return functools.reduce(lambda y, module: module(y), self.body.children(), x)


class ByValue(OfChild):
    def forward(self, x):
        return self.body.last(apply(self.body.act, self.body.fc(x)))


def apply(function, x):
    return function(x)


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (OfDict, "layers.act"),
        (OfChild, "body.act"),
        (OfGrandchild, "body.0.act"),
        (OfFoldedChild, "body.act"),
        (ByValue, "body.act"),
    ],
)
def test_of_another_module(cls, expected, check):
    check(cls(), [expected], torch.randn(8, 4), init="silu")


def test_a_plain_list_keeps_the_module_that_it_holds(left):
    """Replacing the attribute would give it parameters that nothing uses."""

    class Model(Named):
        def __init__(self):
            super().__init__()
            self.order = [self.fc, self.act, self.last]

        def forward(self, x):
            for layer in self.order:
                x = layer(x)
            return x

    report = convert_activations(Model())
    assert not report.sites
    assert "not an nn.ModuleList" in left(report)["act"]


def test_what_nothing_calls_is_still_left(left):
    class Model(Named):
        def forward(self, x):
            for layer in (self.fc, self.last):
                x = layer(x)
            return x if hasattr(self, "act") and isinstance(self, Model) else -x

    assert left(convert_activations(Model())) == {"act": "never called"}
