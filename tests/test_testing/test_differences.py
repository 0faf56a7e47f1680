"""What differs between a converted model and the unconverted one."""

import torch
from torch import nn

from apa_mmdet.testing.differences import (
    flatten,
    gradient_differences,
    key_differences,
    neighbouring,
    relative_differences,
)


def test_differences_are_relative_to_the_largest_element():
    expected = {"a": torch.tensor([1.0, -4.0]), "b": torch.zeros(2) + 2}
    actual = {"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([2.0, float("nan")])}
    assert relative_differences(expected, actual) == {"a": 0.25, "b": float("inf")}
    nested = {"x": [torch.ones(1), (torch.ones(2), None)], "y": torch.ones(1).long()}
    assert [name for name, _ in flatten("o", nested)] == ["o.x.0", "o.x.1.0"]


def test_keys():
    base, model = nn.Module(), nn.Module()
    for name, size in (("a", 1), ("b", 1), ("c", 1)):
        base.register_parameter(name, nn.Parameter(torch.zeros(size)))
    for name, size in (("c", 1), ("b", 2), ("act_lambda_param", 1), ("d", 1)):
        model.register_parameter(name, nn.Parameter(torch.zeros(size)))
    assert key_differences(base, base) == []
    assert key_differences(base, model) == [
        "a is missing",
        "b has a different shape",
        "d is new",
        "the order of the keys has changed",
    ]


def test_gradients_that_differ_are_named():
    one = torch.tensor([1.0, 2.0])
    before = {"a": one, "b": one, "c": None, "d": None}
    after = {"a": one.clone(), "b": one + 0.5, "c": None, "d": one}
    assert gradient_differences(before, after) == [
        "the gradient of b differs by 0.2 of its largest element",
        "d has a gradient in one of the models only",
    ]


def test_the_nearest_weights_count_as_neighbours():
    near, far = torch.zeros(1), torch.zeros(2)
    gradients = {"block.fc.weight": near, "block.fc.bias": None, "head.weight": far}
    gradients["aside.weight"] = None
    assert neighbouring("block.act", gradients) == [near]
    assert neighbouring("aside.act", gradients) == []
    assert neighbouring("act", gradients) == [near, far]
