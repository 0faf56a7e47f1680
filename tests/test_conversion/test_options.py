"""What the options select, and what they refuse before anything has changed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apa_mmdet.conversion import convert_activations
from apa_mmdet.layers import AGLU, APA


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU()
        self.gate = nn.Sigmoid()

    def forward(self, x):
        x = self.relu(self.fc1(x))
        return self.gate(x) * self.relu(self.fc2(x))


class Distance(nn.modules.loss._Loss):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(x) + F.relu(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(Block(), Block())
        self.neck = nn.Sequential(nn.Linear(4, 4), nn.GELU())
        self.bbox_head = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 1))
        self.loss_cls = Distance()

    def forward(self, x):
        return self.loss_cls(self.bbox_head(self.neck(self.backbone(x))))


RELUS = [f"backbone.{i}.relu.{j}" for i in range(2) for j in range(2)]
ALL = [*RELUS, "neck.1", "bbox_head.1"]


def converted(**options):
    return [site.path for site in convert_activations(Model(), **options).sites]


def test_by_default_every_feature_activation():
    report = convert_activations(Model())
    assert [site.path for site in report.sites] == ALL
    starts = {site.was: site.start for site in report.sites}
    assert starts == {
        "ReLU": "lambda 1, kappa 50",
        "GELU": "lambda 1, kappa 1.702",
        "SiLU": "lambda 1, kappa 1",
    }
    reasons = {item.path: item.reason for item in report.left}
    assert set(reasons) == {
        "backbone.0.gate",
        "backbone.1.gate",
        "loss_cls.act",
        "loss_cls.forward()",
    }
    assert reasons["loss_cls.act"] == "it belongs to a loss"
    assert "gates=True" in reasons["backbone.0.gate"]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["backbone"], RELUS),
        (["neck", "head"], ALL[4:]),
        (["bbox_head"], ALL[5:]),
        (["backbone.1"], RELUS[2:]),
    ],
)
def test_parts(parts, expected):
    assert converted(parts=parts) == expected


def test_types():
    assert converted(types=["SiLU", "GELU"]) == ALL[4:]
    assert converted(types=["Swish"]) == ALL[5:]


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        (["backbone"], ALL[4:]),
        (["backbone.0", "neck*"], [*RELUS[2:], "bbox_head.1"]),
        (["*.relu.1"], ["backbone.0.relu.0", "backbone.1.relu.0", *ALL[4:]]),
    ],
)
def test_exclude(exclude, expected):
    assert converted(exclude=exclude) == expected


def test_an_excluded_site_beside_a_converted_one_stays_as_it_was():
    model = Block()
    convert_activations(model, exclude=["relu.1"], init="silu")
    assert type(model.relu["0"]) is AGLU and type(model.relu["1"]) is nn.ReLU
    x = torch.randn(8, 4)
    hidden = F.silu(model.fc1(x))
    expected = hidden.sigmoid() * model.fc2(hidden).relu()
    torch.testing.assert_close(model(x), expected)


def test_filter_fn():
    """It is called for the sites that the other options select."""
    asked = {}

    def is_wanted(module, path):
        asked[path] = type(module)
        return isinstance(module, nn.ReLU) and path.endswith("1")

    report = convert_activations(Model(), filter_fn=is_wanted, exclude=["neck"])
    assert [site.path for site in report.sites] == [RELUS[1], RELUS[3]]
    assert asked == {**dict.fromkeys(RELUS, nn.ReLU), "bbox_head.1": nn.SiLU}
    reasons = {item.path: item.reason for item in report.left}
    assert reasons["bbox_head.1"] == "filter_fn does not select it"


def test_filter_fn_gets_a_module_for_a_function():
    class Inline(nn.Module):
        def forward(self, x):
            return F.leaky_relu(F.gelu(x), 0.2)

    asked = []

    def is_wanted(module, path):
        asked.append((path, str(module)))
        return False

    assert convert_activations(Inline(), filter_fn=is_wanted).sites == []
    assert asked == [
        ("gelu", "GELU(approximate='none')"),
        ("leakyrelu", "LeakyReLU(negative_slope=0.2)"),
    ]


def test_nothing_changes_if_filter_fn_raises():
    model = Model()

    def fails(module, path):
        if path == "bbox_head.1":
            raise KeyError(path)
        return True

    with pytest.raises(KeyError):
        convert_activations(model, filter_fn=fails)
    assert type(model.backbone[0]) is Block
    assert len(convert_activations(model).sites) == len(ALL)


def test_the_name_of_a_class_means_nothing():
    """Only the rules that a library hands in say what its classes are."""

    class FPN(nn.Module):
        def forward(self, x):
            return F.relu(x)

    class FocalLoss(FPN):
        pass

    report = convert_activations(nn.Sequential(FPN(), FocalLoss()))
    assert [site.path for site in report.sites] == ["0", "1"]


def test_gates_start_equal():
    model = Block()
    x = torch.randn(8, 4)
    report = convert_activations(model, gates=True, init="silu", exclude=["relu"])
    assert [site.path for site in report.sites] == ["gate"]
    assert type(model.gate) is APA
    hidden = model.fc1(x).relu()
    expected = hidden.sigmoid() * model.fc2(hidden).relu()
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hard", [nn.Hardsigmoid(), None])
def test_hard_gates_are_refused_with_the_reason(hard):
    if hard is None:
        hard = pytest.importorskip("mmcv.cnn").HSigmoid()
    report = convert_activations(nn.Sequential(nn.Linear(4, 4), hard), gates=True)
    assert report.sites == []
    assert "only in the limit" in report.left[0].reason


def test_hardswish_is_converted_only_by_name():
    def build():
        return nn.Sequential(nn.Linear(4, 4), nn.Hardswish())

    report = convert_activations(build())
    assert "list it in types" in report.left[0].reason and not report.sites
    assert len(convert_activations(build(), types=["HSwish"]).sites) == 1


@pytest.mark.parametrize(
    ("init", "kappa"),
    [
        ("silu", 1.0),
        (dict(lam=0.5, kappa=3.0), 3.0),
        (dict(ReLU=dict(lam=1.0, kappa=10.0)), 10.0),
        (dict(GELU="silu"), 50.0),
    ],
)
def test_init(init, kappa):
    model = Model()
    convert_activations(model, init=init)
    assert model.backbone[0].relu["0"].kappa_param.item() == kappa
    if init == dict(GELU="silu"):
        assert model.neck[1].kappa_param.item() == 1.0


def test_an_explicit_start_keeps_the_form():
    """The slope of a LeakyReLU is not a starting value."""
    x = torch.randn(9)
    model = nn.Sequential(nn.LeakyReLU(0.1))
    convert_activations(model, init="silu")
    torch.testing.assert_close(model(x), 0.9 * F.silu(x) + 0.1 * x)
    model = nn.Sequential(nn.LeakyReLU(0.1))
    convert_activations(model, dict(type="AGLU", negative_slope=0.0), init="silu")
    torch.testing.assert_close(model(x), F.silu(x))


def test_activation_by_dict_class_and_name():
    class Mine(AGLU):
        pass

    for activation in (Mine, dict(type=Mine)):
        model = Block()
        convert_activations(model, activation=activation)
        assert type(model.relu["0"]) is Mine
    model = Block()
    convert_activations(model, dict(type="AGLU", learnable=False))
    assert not model.relu["0"].lambda_param.requires_grad
    model = Block()
    convert_activations(model, "APA", init="sigmoid")
    assert type(model.relu["0"]) is APA


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(parts=["backbon"]), ValueError, ["backbon", "backbone, neck"]),
        (dict(parts="neck"), TypeError, ["parts='neck'", "['neck']"]),
        (dict(types=["Relu"]), ValueError, ["types", "'Relu'", "ReLU6"]),
        (dict(exclude=["bakbone*"]), ValueError, ["bakbone*", "10", "backbone.0.relu"]),
        (dict(activation="ReLU"), TypeError, ["'ReLU'", "'AGLU'"]),
        (dict(activation=dict(type=nn.SiLU)), TypeError, ["SiLU", "'AGLU'"]),
        (dict(activation=dict(init="silu")), TypeError, ["activation", "type"]),
        (
            dict(activation=dict(type="AGLU", init="silu")),
            ValueError,
            ["init='silu'", "beside"],
        ),
        (
            dict(activation=dict(type="AGLU", num_parameters=64)),
            ValueError,
            ["num_parameters=64", "expected 1"],
        ),
        (dict(filter_fn=["relu"]), TypeError, ["filter_fn=['relu']", "function"]),
        (dict(filter_fn="no.such"), ValueError, ["'no.such'", "package.module"]),
        (dict(activation="APA"), ValueError, ["init='auto'", "APA", "uniform"]),
        (dict(init="relu6"), ValueError, ["'relu6'", "silu"]),
        (dict(init=dict(lam=-1.0, kappa=1.0)), ValueError, ["-1", "lam >= 0"]),
        (dict(init=dict(Relu="silu")), ValueError, ["'Relu'", "ReLU6"]),
    ],
)
def test_wrong_options_change_nothing(options, error, words):
    model = Model()
    keys = list(model.state_dict())
    with pytest.raises(error) as caught:
        convert_activations(model, **options)
    for word in words:
        assert word in str(caught.value)
    assert list(model.state_dict()) == keys
    assert type(model.backbone[0].relu) is nn.ReLU
    assert type(model.backbone[0]) is Block


def test_a_converted_model_is_refused():
    model = Model()
    convert_activations(model)
    with pytest.raises(ValueError, match="converted already"):
        convert_activations(model)


def test_a_part_that_was_converted_on_its_own_stays():
    model = Model()
    convert_activations(model.backbone, init="silu")
    report = convert_activations(model)
    assert [site.path for site in report.sites] == ALL[4:]
    assert model.backbone[0].relu["1"].kappa_param.item() == 1.0


def test_a_model_is_needed():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        convert_activations({"type": "FasterRCNN"})


def test_activations_that_are_learnable_already_stay():
    model = nn.Sequential(nn.Linear(4, 4), AGLU(), nn.Linear(4, 4), nn.ReLU())
    assert [site.path for site in convert_activations(model).sites] == ["3"]
