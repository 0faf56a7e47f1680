"""Activations are recognised by what they compute, and by nothing that they do."""

import copy
import functools
import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apa_mmdet.conversion import convert_activations, curves, rules
from apa_mmdet.conversion.identify import UNLISTED, identify
from apa_mmdet.conversion.kinds import GATE
from apa_mmdet.layers import AGLU


def module(forward, **attributes):
    """Return a module of a class of its own with this forward."""
    made = type("Made", (nn.Module,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


class GELUWithMethod(nn.Module):
    """As transformers': the function is chosen when it is built."""

    def __init__(self, written_out):
        super().__init__()
        tanh = functools.partial(F.gelu, approximate="tanh")
        self.act = self._written_out if written_out else tanh

    def _written_out(self, x):
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1.0 + torch.tanh(inner))

    def forward(self, x):
        return self.act(x)


class SwishFunction(torch.autograd.Function):
    """As EfficientNet's, which saves memory."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return grad * gate * (1 + x * (1 - gate))


class ByMode(nn.Module):
    """As Bloom's GELU: other code in training, which computes the same."""

    def forward(self, x):
        if self.training:
            return SwishFunction.apply(x)
        return swish(x)


def swish(x, inplace: bool = False):
    """As timm's."""
    return x.mul_(x.sigmoid()) if inplace else x.mul(x.sigmoid())


@torch.jit.script
def scripted_mish(x):
    return x.mul(F.softplus(x).tanh())


def written_out(self, x):
    """Undefined for large inputs."""
    return x * torch.exp(x) / (1 + torch.exp(x))


KNOWN = {
    "quick gelu": (module(lambda self, x: x * torch.sigmoid(1.702 * x)), "GELU"),
    "tanh gelu": (GELUWithMethod(True), "GELU"),
    "partial": (GELUWithMethod(False), "GELU"),
    "erf gelu": (
        module(lambda self, x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        "GELU",
    ),
    "fast gelu": (
        module(
            lambda self, x: (
                0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))
            )
        ),
        "GELU",
    ),
    "by exp": (module(written_out), "SiLU"),
    "in float32": (module(lambda self, x: F.silu(x.float()).to(x.dtype)), "SiLU"),
    "autograd": (module(lambda self, x: SwishFunction.apply(x)), "SiLU"),
    "by mode": (ByMode(), "SiLU"),
    "function": (swish, "SiLU"),
    "scripted": (scripted_mish, "Mish"),
    "method": (module(lambda self, x: x.relu()), "ReLU"),
    "where": (module(lambda self, x: torch.where(x > 0, x, 0 * x)), "ReLU"),
    "hard": (module(lambda self, x: x * F.relu6(x + 3) / 6), "Hardswish"),
    "gate": (module(lambda self, x: 1 / (1 + torch.exp(-x))), GATE),
}


@pytest.mark.parametrize("name", KNOWN)
def test_recognised(name):
    activation, kind = KNOWN[name]
    found = identify(activation)
    assert (found.kind, dict(found.options), found.start) == (kind, {}, None)


def test_apply_of_an_autograd_function_need_not_be_a_python_method():
    class Function(SwishFunction):
        pass

    # As it is everywhere since torch 2.14.
    Function.apply = super(torch.autograd.Function, Function).apply
    assert inspect.isbuiltin(Function.apply)
    assert identify(module(lambda self, x: Function.apply(x))).kind == "SiLU"


def test_arguments_are_measured():
    found = identify(module(lambda self, x: torch.where(x > 0, x, self.a * x), a=0.25))
    assert found.kind == "LeakyReLU"
    assert found.options == {"negative_slope": pytest.approx(0.25)}
    found = identify(module(lambda self, x: x * torch.sigmoid(self.beta * x), beta=3.0))
    assert found.kind == "SiLU"
    assert found.start == {"lam": 1.0, "kappa": pytest.approx(3.0)}


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()), "Tanh"),
        (lambda self, x: F.relu(x).square(), UNLISTED),
        (lambda self, x: torch.clip(F.gelu(x), -10, 10), UNLISTED),
        (lambda self, x: x.clamp(0, 1333), UNLISTED),  # coordinates
        (lambda self, x: x.clamp(min=0), "use nn.ReLU"),
        (lambda self, x: torch.clip(x, 0, 6), "use nn.ReLU6"),
    ],
)
def test_left_with_a_reason(forward, reason):
    found = identify(module(forward))
    assert found.kind == "" and reason in found.reason


CALLS = []


def noting(x):
    CALLS.append(x)
    return F.silu(x)


def refusing(x):
    raise RuntimeError("the model's own input only")


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps, self.history = 0, []

    def forward(self, x):
        self.steps += 1
        return F.silu(x)


class Remembering(Counting):
    def forward(self, x):
        self.history.append(x)
        return F.silu(x)


class WithProperty(nn.Module):
    @property
    def scale(self):
        CALLS.append("scale")
        return 1.0

    def forward(self, x):
        return F.silu(x) * self.scale


def keeping(x, seen=[None]):  # noqa: B006
    seen[0] = x
    return F.silu(x)


def counting_down(x):
    for _ in range(10**12):
        x = x + 1
    return x


class DropPath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * torch.rand(shape).add(0.9).floor()


NONE = {
    "identity": module(lambda self, x: x),
    "scale": module(lambda self, x: 0.5 * x + 1),
    "dropout": module(lambda self, x: F.dropout(x, 0.1, self.training)),
    "torch's dropout": nn.Dropout(0.1),
    "drop path": DropPath(),
    "noise": module(lambda self, x: F.silu(x) + torch.randn_like(x)),
    "rrelu": module(lambda self, x: F.rrelu(x, training=self.training)),
    "only in training": module(lambda self, x: F.silu(x) if self.training else x),
    "softmax": module(lambda self, x: x.softmax(-1)),
    "norm": module(lambda self, x: F.layer_norm(x, x.shape[-1:])),
    "scaled by the norm": module(lambda self, x: F.silu(x) / x.norm()),
    "less the largest": module(lambda self, x: F.silu(x - x.max())),
    "cumulative": module(lambda self, x: F.silu(x).cumsum(-1)),
    "pooling": module(lambda self, x: F.silu(x).mean(-1)),
    "half": module(lambda self, x: F.glu(x)),
    "transposed": module(lambda self, x: F.silu(x).flip(-1)),
    "two inputs": module(lambda self, x, y: x * y.sigmoid()),
    "any inputs": module(lambda self, *x: F.silu(x[0])),
    "counts": Counting(),
    "remembers": Remembering(),
    "notes": module(lambda self, x: noting(x)),
    "a function that notes": noting,
    "a function that keeps": keeping,
    "takes for ever": counting_down,
    "stops the gradient": module(lambda self, x: x * torch.sigmoid(x).detach()),
    "writes past autograd": module(lambda self, x: x.data * torch.sigmoid(x)),
    "has a property": WithProperty(),
    "prints": module(lambda self, x: print(x) or F.silu(x)),
    "opens a file": module(lambda self, x: open("/nowhere") and F.silu(x)),
    "fails": module(lambda self, x: refusing(x)),
    "a sigmoid as a function": lambda x: 1 / (1 + torch.exp(-x)),
    "mask": module(lambda self, x: x > 0),
    "holds a tensor": module(lambda self, x: F.silu(x), table=torch.zeros(3)),
    "holds a module": module(lambda self, x: F.silu(x), act=nn.SiLU()),
    "a class": nn.SiLU,
    "a number": 3.0,
}


@pytest.mark.parametrize("name", NONE)
def test_not_an_activation(name, capsys):
    thing = NONE[name]
    before = dict(vars(thing)) if isinstance(thing, nn.Module) else {}
    random_state = torch.get_rng_state()
    assert identify(thing) is None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert keeping.__defaults__ == ([None],)
    assert CALLS == [] and capsys.readouterr().out == ""
    assert before.get("steps", 0) == 0 and before.get("history", []) == []
    if isinstance(thing, nn.Module):
        assert vars(thing) == before


def test_one_probe_for_each_class_and_configuration(monkeypatch):
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return x * torch.sigmoid(self.scale * x)

    calls = []
    call = curves._call
    monkeypatch.setattr(curves, "_call", lambda f, x: calls.append(f) or call(f, x))
    assert identify(Scaled(1.0)).kind == identify(Scaled(1.0)).kind == "SiLU"
    once = len(calls)
    identify(Scaled(1.0).eval().double())
    assert len(calls) == once > 0
    identify(Scaled(1.702))
    assert len(calls) == 2 * once


def test_the_modes_around_it_do_not_matter():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
            act = module(lambda self, x: x * torch.sigmoid(1.702 * x) + torch.zeros(1))
            model = nn.Sequential(nn.Linear(4, 4), act)
            report = convert_activations(model)
    finally:
        torch.set_default_dtype(dtype)
    assert [site.path for site in report.sites] == ["1"]


class Mlp(nn.Module):
    """As CLIP's, with a function from a module of functions besides."""

    def __init__(self, act):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(4, 4) for _ in range(3))
        self.act = act
        self.other = swish

    def forward(self, x):
        x = self.fc1(x)
        x = self.fc2(self.act(x))
        x = shared_gelu(self.fc3(swish(x)))
        return self.other(x)


# As transformers.activations.quick_gelu: a module that is called as a function.
shared_gelu = module(lambda self, x: torch.sigmoid(1.702 * x) * x)


def test_modules_and_functions_are_converted(check):
    act = KNOWN["quick gelu"][0]
    expected = ["act", "other", "silu", "gelu"]
    report = check(Mlp(act), expected, torch.randn(8, 4), init="auto")
    assert [site.was for site in report.sites] == [
        *("GELU", "SiLU", "SiLU, inline", "GELU, inline")
    ]


def test_x_sigmoid_of_a_multiple_starts_exactly():
    x = torch.linspace(-20, 20, 10_001, dtype=torch.float64)
    for beta in (1.702, 2.5):
        act = module(lambda self, x: x * torch.sigmoid(self.beta * x), beta=beta)
        model = nn.Sequential(act)
        expected = model(x)
        report = convert_activations(model)
        assert report.sites[0].start == f"lambda 1, kappa {beta:g}"
        assert isinstance(model[0], AGLU)
        torch.testing.assert_close(model(x), expected, atol=2e-6, rtol=1e-6)


def test_an_excluded_function_stays_what_it_was():

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return swish(self.fc(swish(x)))

    model, x = Model(), torch.randn(8, 4)
    report = convert_activations(model, exclude=["silu.0"], init={"SiLU": "relu"})
    assert [site.path for site in report.sites] == ["silu.1"]
    torch.testing.assert_close(model(x), model.silu["1"](model.fc(F.silu(x))))
    assert (model(x) - swish(model.fc(swish(x)))).abs().max() > 0.01


def test_a_call_with_further_arguments_is_left(left):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return swish(self.fc(x), **{"inplace": True})

    report = convert_activations(Model())
    assert not report.sites
    assert left(report) == {"forward()": "it is called with further arguments"}


def test_the_input_given_by_name(check):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.silu, self.gelu = nn.SiLU(), KNOWN["quick gelu"][0]

        def forward(self, x):
            x = self.fc(self.gelu(x=self.silu(input=x)))
            return swish(x=x)

    expected = ["silu", "gelu", "silu_inline"]
    check(Model(), expected, torch.randn(8, 4), init="auto")


def test_activations_in_a_plain_list(check, left):
    """It is not registered, so that nothing but the loop shows it."""

    class Model(nn.Module):
        def __init__(self, *acts):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.acts = list(acts)

        def forward(self, x):
            for act in self.acts:
                x = act(self.fc(x))
            return x

    x = torch.randn(8, 4)
    check(Model(nn.ReLU(), nn.ReLU()), ["relu.0", "relu.1"], x)
    acts = (nn.ReLU(), nn.SiLU()), (nn.ReLU(), nn.Identity()), (F.relu, torch.tanh)
    for various in (*acts, (nn.ReLU(), nn.LeakyReLU(0.2))):
        model = Model(*various)
        expected = model(x)
        report = convert_activations(model)
        assert not report.sites and torch.equal(model(x), expected)
        assert "not the same activation in each pass" in left(report)["forward()"]


def test_rules_for_the_class_of_an_activation_hold(left, monkeypatch):
    class Distance(nn.Module):
        def forward(self, x):
            return F.relu(x)

    def fixed(module):
        return {"": "a distance"} if isinstance(module, Distance) else {}

    monkeypatch.setattr(rules, "_RULES", [*rules._RULES, rules.ModelRules(fixed)])
    model = nn.Sequential(Distance(), nn.ReLU())
    report = convert_activations(model)
    assert [site.path for site in report.sites] == ["1"]
    assert left(report) == {"0": "a distance"}


class Written(nn.Module):
    """The formulas themselves, in a forward with other things."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(4, 4) for _ in range(3))
        self.beta = 2.0

    def forward(self, x):
        x = self.fc1(x)
        x = 1 + 0.5 * (x * torch.sigmoid(self.beta * x))
        y = self.fc2(x)
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        z = self.fc3(x)
        z = z * torch.sigmoid(z) if x.ndim == 2 else torch.sigmoid(z) * z
        gate = torch.sigmoid(y)
        return z * torch.sigmoid(y) + gate * torch.tanh(z) * (z > 0) * z.exp()


def test_expressions_are_converted(check):
    expected = ["silu", "gelu", "silu_inline"]
    x = torch.randn(8, 4)
    report = check(Written(), expected, x, init="auto", tolerance=0.05)
    assert report.sites[0].start == "lambda 1, kappa 2"
    assert report.left == []


@pytest.mark.parametrize("name", ["silu", "gelu", "silu_inline"])
def test_an_excluded_expression_stays(name):
    model, x = Written(), torch.randn(8, 4)
    before = model(x)
    convert_activations(model, exclude=[name])
    assert not hasattr(model, name)
    torch.testing.assert_close(model(x), before, atol=0.02, rtol=0.01)


def test_an_excluded_expression_beside_another_stays():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            x = self.fc(x * torch.sigmoid(1.702 * x))
            return x * torch.sigmoid(1.702 * x)

    model, x = Model(), torch.randn(8, 4)
    before = model(x)
    report = convert_activations(model, exclude=["gelu.0"])
    assert [site.path for site in report.sites] == ["gelu.1"]
    torch.testing.assert_close(model(x), before)
    assert isinstance(copy.deepcopy(model).gelu["1"], AGLU)
