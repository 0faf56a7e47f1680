"""Parameter groups for torch's optimizers."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from apa_mmdet.conversion import convert_activations
from apa_mmdet.layers import AGLU
from apa_mmdet.optim import param_groups


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4), nn.ReLU())
    convert_activations(model)
    model[2].requires_grad_(False)
    return model


def names(model, groups):
    by_id = {id(param): name for name, param in model.named_parameters()}
    return [[by_id[id(param)] for param in group["params"]] for group in groups]


def test_only_lambda_and_kappa_leave_the_first_group(model):
    groups = param_groups(model, weight_decay=0.1)
    assert names(model, groups) == [
        ["0.weight", "0.bias", "2.weight", "2.bias"],
        ["1.lambda_param", "1.kappa_param", "3.lambda_param", "3.kappa_param"],
    ]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_decays_the_others_only(model, optimizer):
    before = {name: param.clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer(param_groups(model, 0.5), lr=0.1).step()
    for name, param in model.named_parameters():
        factor = 1.0 if name.endswith(("lambda_param", "kappa_param")) else 0.95
        torch.testing.assert_close(param, factor * before[name])


def test_shared_parameters_are_listed_once():
    act = AGLU()
    tied = nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act)
    tied[2].weight = tied[0].weight
    assert names(tied, param_groups(tied, 0.1)) == [
        ["0.weight", "0.bias", "2.bias"],
        ["1.lambda_param", "1.kappa_param"],
    ]


def test_a_parametrized_lambda_is_one_still(model):
    parametrize.register_parametrization(model[1], "lambda_param", nn.Softplus())
    assert names(model, param_groups(model, 0.1))[1] == [
        "1.kappa_param",
        "1.parametrizations.lambda_param.original",
        "3.lambda_param",
        "3.kappa_param",
    ]


def test_a_group_without_parameters_is_left_out():
    [decayed] = param_groups(nn.Linear(2, 2), 0.1)
    [exempt] = param_groups(AGLU(), 0.1)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("weight_decay", [-0.1, float("nan"), "0.1", None])
def test_a_weight_decay_that_is_none(weight_decay):
    with pytest.raises(ValueError, match="^weight_decay=.*, expected a finite number"):
        param_groups(nn.Linear(2, 2), weight_decay)


def test_a_model_that_is_none():
    with pytest.raises(TypeError, match="^model is list, expected a torch.nn.Module"):
        param_groups([nn.Linear(2, 2)], 0.1)
