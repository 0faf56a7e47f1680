"""Converted models in what training wraps around them, with only torch."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from apa_mmdet.conversion import convert_activations
from apa_mmdet.layers import AGLU
from apa_mmdet.ops import use_implementation
from apa_mmdet.optim import param_groups

OWN = ("lambda_param", "kappa_param")


class GatedMLP(nn.Module):
    """The feed-forward layer of Llama (SwiGLU) and of T5 1.1 and Gemma (GEGLU)."""

    def __init__(self, act):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(8, 12, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(12, 8, bias=False)
        self.act_fn = act

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Language(nn.Module):
    """A language model of gated layers, with its head tied to its embedding."""

    def __init__(self, act=nn.SiLU, checkpointing=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(GatedMLP(act()) for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight
        self.checkpointing = checkpointing

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            if self.checkpointing:
                x = x + checkpoint(layer, x, use_reentrant=False)
            else:
                x = x + layer(x)
        return self.head(self.norm(x))


@pytest.fixture
def ids():
    return torch.arange(12).reshape(2, 6)


def own(model):
    return [act for act in model.modules() if isinstance(act, AGLU)]


def gradients(model, ids):
    loss = model(ids).float().square().mean()
    names, params = zip(*model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, params)))


@pytest.mark.parametrize(
    "act, kappa, tolerance", [(nn.SiLU, 1.0, 1e-5), (nn.GELU, 1.702, 0.1)]
)
def test_gated_layers_start_as_swiglu_and_geglu(act, kappa, tolerance, ids, paths):
    model = Language(act)
    before = model(ids)
    report = convert_activations(model)
    assert paths(report) == ["layers.0.act_fn", "layers.1.act_fn"]
    assert [act.kappa_param.item() for act in own(model)] == pytest.approx([kappa] * 2)
    torch.testing.assert_close(model(ids), before, atol=tolerance, rtol=0)
    assert all(grad.abs().max() > 0 for grad in gradients(model, ids).values())


def test_tied_weights_stay_tied_and_do_not_tie_activations(ids):
    model = Language()
    model.layers[1].gate_proj.weight = model.layers[0].gate_proj.weight
    convert_activations(model)
    assert model.head.weight is model.embed.weight
    assert model.layers[1].gate_proj.weight is model.layers[0].gate_proj.weight
    first, second = own(model)
    assert first.lambda_param is not second.lambda_param


def test_a_repeated_block_has_one_pair(paths):
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = GatedMLP(nn.SiLU())

        def forward(self, x):
            for _ in range(3):
                x = x + self.block(x)
            return x

    model, x = Repeated(), torch.randn(4, 8)
    before = model(x)
    report = convert_activations(model)
    assert paths(report) == ["block.act_fn"]
    torch.testing.assert_close(model(x), before)


def test_checkpointed_layers_have_the_same_gradients(ids):
    plain, saving = Language(), Language(checkpointing=True)
    for model in (plain, saving):
        convert_activations(model)
    expected = gradients(plain, ids)
    for name, grad in gradients(saving, ids).items():
        torch.testing.assert_close(grad, expected[name], atol=0, rtol=0)


class Scaled(nn.Module):
    """A parameter of its own, and an activation in two places."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.relu(x @ self.weight) @ self.weight)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


def test_parametrized_before_the_conversion(paths):
    model, x = Scaled(), torch.randn(8, 4)
    parametrize.register_parametrization(model, "weight", Halved())
    before = model(x)
    report = convert_activations(model, init=dict(lam=1.0, kappa=1e4))
    assert paths(report) == ["relu.0", "relu.1"]
    torch.testing.assert_close(model(x), before, atol=1e-3, rtol=0)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))


def test_parametrized_after_the_conversion():
    model, x = Scaled(), torch.randn(8, 4)
    convert_activations(model)
    before = model(x / 4)
    parametrize.register_parametrization(model, "weight", Halved())
    model(x).sum().backward()
    assert all(act.kappa_param.grad is not None for act in own(model))
    parametrize.remove_parametrizations(model, "weight", leave_parametrized=False)
    torch.testing.assert_close(model(x / 4), before)


def test_what_computes_a_parameter_is_not_an_activation(left, paths):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    parametrize.register_parametrization(model[0], "weight", nn.ReLU())
    report = convert_activations(model)
    assert paths(report) == ["1"]
    assert left(report) == {
        "0.parametrizations.weight.0": "it computes a parameter, not a feature"
    }
    assert (model[0].weight >= 0).all()


def test_bfloat16_rounds_steps_away_unless_the_activations_stay_float32(ids):
    model = Language(nn.GELU)
    convert_activations(model)
    model.to(torch.bfloat16)
    kappa = own(model)[0].kappa_param
    assert kappa.item() == 1.703125  # 1.702, rounded

    def step():
        optimizer = torch.optim.AdamW(param_groups(model, 0.1), lr=1e-3)
        loss = model(ids).float().square().mean()
        loss.backward()
        assert all(param.grad.isfinite().all() for param in model.parameters())
        optimizer.step()

    step()
    assert kappa.item() == 1.703125
    for act in own(model):
        act.float()
    step()
    assert kappa.dtype == torch.float32 and kappa.item() != 1.703125
    assert model(ids).dtype == torch.bfloat16


def test_autocast_leaves_the_parameters_in_float32(ids):
    model = Language()
    convert_activations(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(ids).dtype == torch.bfloat16
        found = gradients(model, ids)
    for grad in found.values():
        assert grad.dtype == torch.float32 and grad.isfinite().all() and grad.any()


def test_on_the_meta_device(ids):
    plain = Language(nn.GELU)
    with torch.device("meta"):
        model = Language(nn.GELU)
        convert_activations(model)
    assert all(param.is_meta for param in model.parameters())
    model.to_empty(device="cpu")
    for act in own(model):
        act.reset_parameters()
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert all(key.endswith(OWN) for key in result.missing_keys)
    convert_activations(plain)
    torch.testing.assert_close(model(ids), plain(ids), atol=0, rtol=0)


def test_converted_in_bfloat16(ids):
    model = Language(nn.GELU).to(torch.bfloat16)
    convert_activations(model)
    assert {act.kappa_param.dtype for act in own(model)} == {torch.float32}
    assert model(ids).dtype == torch.bfloat16
    for name, grad in gradients(model, ids).items():
        assert grad.dtype == (torch.float32 if name.endswith(OWN) else torch.bfloat16)
        assert grad.abs().max() > 0


class Inner(nn.Module):
    """A model that sets its weights itself, in the way of transformers."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = nn.GELU()

    def forward(self, x):
        return self.act(self.fc(x))

    def _init_weights(self, module, std=0.02):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)


class Outer(Inner):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return super().forward(self.inner(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: m], ids=["copy", "own"])
def test_a_librarys_initialisation_sets_the_activations(duplicate):
    model = Outer()
    convert_activations(model)
    model = duplicate(model)
    for owner in (model, model.inner):
        owner.act.kappa_param.data.fill_(1e30)
        owner._init_weights(owner.act)
        assert owner.act.kappa_param.item() == pytest.approx(1.702)
        owner._init_weights(module=owner.fc, std=0.0)
        assert not owner.fc.weight.any()


def test_a_model_with_its_own_initialisation_can_be_pickled():
    model, x = Outer(), torch.randn(2, 4)
    convert_activations(model)
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(x), model(x))
    again._init_weights(again.act)


@pytest.mark.parametrize("implementation", ["auto", "plain"])
def test_exported(implementation, ids):
    model = Language().eval()
    convert_activations(model)
    with use_implementation(implementation):
        program = torch.export.export(model, (ids,))
    torch.testing.assert_close(program.module()(ids), model(ids))
    exported = {name for name, _ in program.named_parameters()}
    assert {f"layers.{i}.act_fn.{name}" for i in (0, 1) for name in OWN} <= exported
    if implementation == "plain":  # so that it runs without this package
        assert "apa_mmdet" not in str(program.graph)
