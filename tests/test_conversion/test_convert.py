"""Which sites there are: one for each place in the code, none that never runs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apa_mmdet.conversion import convert_activations, kinds
from apa_mmdet.layers import AGLU


class Bottleneck(nn.Module):
    def __init__(self, with_bias=True):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(4, 4) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        def inner(x):
            out = self.relu(self.fc1(x))
            out = self.relu(self.fc2(out))
            return self.fc3(out) + x

        return self.relu(inner(x))


def test_one_module_called_from_three_places(check):
    report = check(Bottleneck(), ["relu.0", "relu.1", "relu.2"], torch.randn(8, 4))
    assert [site.shared for site in report.sites] == ["", "", ""]
    assert report.sites[0].was == "ReLU" and report.sites[0].becomes == "AGLU"


def test_each_place_uses_its_own_parameters():
    """Against the same block written out by hand with three activations."""
    model = Bottleneck()
    convert_activations(model, init="silu")
    starts = [(0.5, 1.0), (1.0, 2.0), (2.0, 0.5)]
    acts = []
    for i, (lam, kappa) in enumerate(starts):
        acts.append(AGLU(init=dict(lam=lam, kappa=kappa)))
        model.relu[str(i)].load_state_dict(acts[-1].state_dict())
    x = torch.randn(8, 4)
    out = acts[1](model.fc2(acts[0](model.fc1(x))))
    torch.testing.assert_close(model(x), acts[2](model.fc3(out) + x))


class Fcs(nn.Module):
    """As ConvFCBBoxHead: three loops over layers, one of them empty."""

    def __init__(self):
        super().__init__()
        self.shared_fcs = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.cls_fcs = nn.ModuleList([nn.Linear(4, 4)])
        self.reg_fcs = nn.ModuleList()
        self.num_shared_fcs = 2
        self.relu = nn.ReLU()

    def forward(self, x):
        if self.num_shared_fcs > 0:
            for fc in self.shared_fcs:
                x = self.relu(fc(x))
        x_cls = x
        for fc in self.cls_fcs:
            x_cls = self.relu(fc(x_cls))
        for fc in self.reg_fcs:
            x = self.relu(fc(x))
        return x + x_cls


def test_a_loop_over_layers_has_a_site_for_each(check):
    check(Fcs(), ["relu.0_0", "relu.0_1", "relu.1_0"], torch.randn(8, 4))


class Mlp(nn.Module):
    """As DETR's: no activation after the last layer."""

    def __init__(self, num_layers=3):
        super().__init__()
        self.num_layers = num_layers
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(num_layers))

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i < self.num_layers - 1 else layer(x)
        return x


def test_inline_in_a_loop_except_its_last_pass(check):
    report = check(Mlp(), ["relu.0", "relu.1"], torch.randn(8, 4))
    assert report.sites[0].was == "ReLU, inline"


def test_a_loop_of_one_pass_is_one_plain_site(check):
    check(Mlp(num_layers=2), ["relu"], torch.randn(8, 4))


class Indexed(nn.Module):
    """As Res2Net and Hourglass: the loop's variable selects the layer."""

    def __init__(self, stacks):
        super().__init__()
        self.stacks = stacks
        self.convs = nn.ModuleList(nn.Linear(4, 4) for _ in range(stacks))
        self.inters = nn.ModuleList(nn.Linear(4, 4) for _ in range(stacks - 1))
        self.relu = nn.ReLU()

    def forward(self, x):
        for i in range(self.stacks):
            x = self.convs[i](x)
            if i < self.stacks - 1:
                x = self.inters[i](self.relu(x))
        return x


def test_a_loop_that_indexes_layers(check):
    check(Indexed(3), ["relu.0", "relu.1"], torch.randn(8, 4))


def test_a_call_that_is_never_reached(left, paths):
    model = Indexed(1)
    report = convert_activations(model)
    assert paths(report) == [] and left(report) == {"relu": "never called"}
    assert type(model.relu) is nn.ReLU


class Nested(nn.Module):
    """As MultiInstanceBBoxHead: a loop over lists of layers."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(nn.Linear(4, 4) for _ in range(n)) for n in (2, 1)
        )
        self.relu = nn.ReLU()

    def forward(self, x):
        for k in range(2):
            for fc in self.branches[k]:
                x = self.relu(fc(x))
        return x


def test_nested_loops(check):
    check(Nested(), ["relu.0_0", "relu.0_1", "relu.1_0"], torch.randn(8, 4))


def apply_to_levels(function, levels):
    return torch.stack([function(level) for level in levels])


class Levels(nn.Module):
    """As a dense head: the same weights for each feature level."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Linear(4, 4)
        self.tower = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, levels):
        return apply_to_levels(self.forward_single, levels)

    def forward_single(self, x):
        return F.relu(self.conv(self.tower(x)))


def test_levels_share_their_activation(check):
    levels = [torch.randn(8, 4) for _ in range(3)]
    report = check(Levels(), ["relu", "tower.1"], levels)
    assert {site.shared for site in report.sites} == {"repeated, as its weights are"}


class Branches(nn.Module):
    """As TridentNet: a comprehension over branches with shared weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = [self.conv(b) for b in (x, 2 * x)]
        out = [self.relu(b) for b in out]
        out = [self.relu(self.last(b)) for b in out]
        return torch.stack(out)


def test_a_comprehension_over_branches(check):
    check(Branches(), ["relu.0", "relu.1"], torch.randn(8, 4))


def test_a_comprehension_over_layers(check):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fcs = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x):
            return torch.stack([F.relu(fc(x)) for fc in self.fcs])

    check(Model(), ["relu.0", "relu.1"], torch.randn(8, 4))


def test_a_nested_comprehension(check):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(
                nn.ModuleList(nn.Linear(4, 4) for _ in range(n)) for n in (2, 1)
            )

        def forward(self, x):
            return torch.stack([F.relu(fc(x)) for fcs in self.branches for fc in fcs])

    check(Model(), ["relu.0_0", "relu.0_1", "relu.1_0"], torch.randn(8, 4))


def test_what_follows_an_early_return(check, left):
    """As HRModule with one branch."""

    class Model(nn.Module):
        def __init__(self, num_branches):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.num_branches = num_branches
            self.relu = nn.ReLU()

        def forward(self, x):
            if self.num_branches == 1:
                return self.fc(x)
            return self.relu(self.fc(x))

    check(Model(2), ["relu"], torch.randn(8, 4))
    assert left(convert_activations(Model(1))) == {"relu": "never called"}


class Entries(nn.Module):
    """As DetectoRS: ``rfp_forward`` is called instead of ``forward``."""

    def __init__(self, other=False):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.fc1(x))
        return self.relu(self.fc2(x))

    def rfp_forward(self, x, feat):
        x = self.fc1(x)
        x = self.relu(x)
        x = self.fc2(x) + feat
        return self.relu(x)


@pytest.mark.parametrize("entry", ["forward", "rfp_forward"])
def test_methods_called_instead_of_each_other_share(entry, check):
    class Caller(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Entries()

        def forward(self, x):
            if entry == "forward":
                return self.block(x)
            return self.block.rfp_forward(x, 1.0)

    check(Caller(), ["block.relu.0", "block.relu.1"], torch.randn(8, 4))


class Arguments(nn.Module):
    """As SABL: a method gets the layers to loop over, one of the lists empty."""

    def __init__(self):
        super().__init__()
        self.offset_fcs = nn.ModuleList()
        self.cls_fcs = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.predict(x, self.offset_fcs, self.cls_fcs)

    def predict(self, x, offset_fcs, cls_fcs):
        for fc in offset_fcs:
            x = self.relu(fc(x))
        for fc in cls_fcs:
            x = self.relu(fc(x))
        return x


def test_layers_given_to_a_method(check):
    check(Arguments(), ["relu.0", "relu.1"], torch.randn(8, 4))


class SameLayer(nn.Module):
    """As GridHead: the same norm's result is the input in two lines."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Linear(4, 4)

    def forward(self, x):
        y = F.relu(self.norm(x), inplace=True)
        if self.training:
            y = y + F.relu(self.norm(-x), inplace=True)
        return y


def test_the_same_layers_result_shares(check):
    report = check(SameLayer(), ["relu"], torch.randn(8, 4))
    assert "forward" in report.sites[0].shared


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.__private = 1.0

    def forward(self, x, scale=1.0):
        return F.relu(self.fc(x)) * scale * self.__private

    def step(self, x):
        return torch.relu(x)


class Derived(Base):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, x, *, offset=0.5):
        x = super().forward(x, scale=2.0)
        return Base.step(self, self.last(x)) - offset


def test_calls_of_a_base_class(check):
    """With super(), by name, with private names and with defaults."""
    check(Derived(), ["relu.0", "relu.1"], torch.randn(8, 4))


def outside(x):
    return F.relu(x) + 1


def test_what_cannot_be_reached_is_named(left, paths):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.act = nn.ELU()
            self.prelu = nn.PReLU()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            x = outside(self.fc(x))
            x = F.selu(self.act(x))
            self.relu(x)
            return self.prelu(x)

    report = convert_activations(Model())
    assert paths(report) == []
    reasons = left(report)
    assert set(reasons) == {"forward()", "act", "prelu", "relu"}
    assert "effect on the input" in reasons["relu"]
    kinds = {item.was for item in report.left if item.path == "forward()"}
    assert kinds == {"F.relu in outside", "F.selu"}
    assert "outside" in str(report) and "ELU" in str(report)


def test_a_class_without_source_keeps_working(check, left):
    scope = {"nn": nn}
    exec(
        "class Hidden(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc, self.act = nn.Linear(4, 4), nn.ReLU()\n"
        "    def forward(self, x):\n"
        "        return self.act(self.act(self.fc(x)))\n",
        scope,
    )
    report = check(scope["Hidden"](), ["act"], torch.randn(8, 4))
    assert "could not be read" in left(report)["forward()"]


def test_what_torch_computes_itself_is_named(left):
    model = nn.Sequential(nn.RNN(4, 4, nonlinearity="relu"))
    model.add_module("scripted", torch.jit.script(nn.Sequential(nn.ReLU())))
    reasons = left(convert_activations(model))
    assert set(reasons) == {"0", "scripted"}
    assert "TorchScript" in reasons["scripted"] and "torch" in reasons["0"]


def test_attributes_looked_up_by_name_or_passed_on(check):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

        def forward(self, x):
            x = getattr(self, "act1")(self.fc(x))  # noqa: B009
            for i in (2,):
                x = getattr(self, f"act{i}")(self.fc(x))
            act = self.act3
            return act(act(self.fc(x)))

    check(Model(), ["act1", "act2", "act3"], torch.randn(8, 4))


def test_called_by_a_property(check):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.act = nn.ReLU()

        @property
        def prior(self):
            return self.act(self.fc.bias)

        def forward(self, x):
            return self.act(self.fc(x)) + self.prior

    check(Model(), ["act"], torch.randn(8, 4))


def test_called_by_another_module(check):
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.child = nn.Module()
            self.child.fc, self.child.act = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x):
            return self.child.act(self.child.fc(x))

    check(Parent(), ["child.act"], torch.randn(8, 4))


def test_one_instance_in_several_places_of_a_sequential(check):
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)
    check(model, ["1", "3"], torch.randn(8, 4))


def test_a_module_at_two_paths_is_one_site(check):
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    report = check(nn.Sequential(block, block), ["0.1"], torch.randn(8, 4))
    assert report.sites[0].shared == "also at 1"


class ConvNet(nn.Module):
    """As torchvision's: a shared ReLU in the blocks, a classifier in a Sequential."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True))
        self.block = Bottleneck()
        self.classifier = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        x = self.stem(x).mean((2, 3))
        return self.classifier(self.block(torch.flatten(x, 1)))


def test_a_convolutional_net(check):
    check(
        ConvNet(),
        ["stem.2", "block.relu.0", "block.relu.1", "block.relu.2", "classifier.1"],
        torch.randn(6, 3, 9, 9),
    )


@pytest.mark.parametrize("kind", ["relu", F.relu, nn.ReLU()])
def test_torchs_transformer(kind, check):
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, activation=kind, batch_first=True
    )
    model = nn.TransformerEncoder(layer, 2)
    expected = ["layers.0.activation", "layers.1.activation"]
    check(model, expected, torch.randn(2, 5, 8))


def test_torchs_transformer_does_not_bypass_it_when_evaluated():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 1)
    convert_activations(model, init="silu")
    x = torch.randn(2, 5, 8)
    expected = model(x)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("module", "largest"),
    [
        (nn.SiLU(), 5e-6),  # two roundings of 20
        (nn.ReLU(), 0.0056),
        (nn.ReLU6(), 0.0056),
        (nn.LeakyReLU(0.01), 0.0056),
        (nn.GELU(), 0.0204),
        (nn.Mish(), 0.018),
        (nn.Hardswish(), 0.124),
    ],
)
def test_how_far_the_start_is_from_what_it_replaces(module, largest):
    x = torch.linspace(-20, 20, 200_001)
    model = nn.Sequential(module)
    before = model(x)
    convert_activations(model, types=[type(module).__name__])
    difference = (model(x) - before).abs().max().item()
    assert difference <= largest
    assert difference >= 0.9 * largest or largest < 1e-5


def test_inline_leaky_relu_keeps_its_slope(paths):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            x = F.leaky_relu(self.fc(x), 0.2)
            return F.leaky_relu(self.fc(x))

    model = Model()
    x = torch.randn(100, 4)
    before = model(x)
    report = convert_activations(model)
    assert paths(report) == ["leakyrelu", "leakyrelu_inline"]
    torch.testing.assert_close(model(x), before, atol=0.02, rtol=0)


def test_a_frozen_neighbour_freezes():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    model[0].requires_grad_(False)
    report = convert_activations(model)
    assert [site.trainable for site in report.sites] == [False, True]
    assert not model[1].lambda_param.requires_grad
    assert model[3].kappa_param.requires_grad


def test_freezing_only_the_norm_does_not_freeze():
    """MMDetection's caffe-style backbones freeze every norm's weights."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    model[1].requires_grad_(False)
    assert convert_activations(model).sites[0].trainable


def test_an_argument_that_aglu_lacks_must_have_its_default(monkeypatch, paths):
    elu = kinds.Kind(nn.ELU, "relu", (F.elu,), arguments={"alpha": 1.0})
    monkeypatch.setitem(kinds.KINDS, "ELU", elu)
    for activation in (nn.ELU, F.elu):
        monkeypatch.setitem(kinds._KIND_OF, activation, "ELU")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.one, self.two = nn.ELU(), nn.ELU(alpha=2)
            self.scale = 2.0

        def forward(self, x):
            x = self.two(self.one(self.fc(x)))
            x = F.elu(F.elu(x, 1.0), self.scale)
            return F.elu(x, alpha=float(x.max()))

    report = convert_activations(Model())
    assert paths(report) == ["one", "elu"]
    reasons = {item.reason for item in report.left}
    assert reasons == {
        "AGLU stands in for alpha=1.0, not 2",
        "AGLU stands in for alpha=1.0, not 2.0",
        "its alpha is not known at conversion time",
    }


def test_a_slope_that_is_not_known_is_left():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(4, 4), F.leaky_relu
            self.options = {"negative_slope": 0.2}

        def forward(self, x):
            return self.act(F.leaky_relu(self.fc(x), **self.options), 0.2)

    model = Model()
    x = torch.randn(8, 4)
    before = model(x)
    report = convert_activations(model)
    assert report.sites == [] and len(report.left) == 2
    assert torch.equal(model(x), before)
