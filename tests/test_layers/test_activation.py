"""Starting values, shapes and errors of the APA and AGLU layers."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_activation_layer
from torch import nn

import apa_mmdet  # noqa: F401  registers the layers
from apa_mmdet.layers import AGLU, APA


@pytest.mark.parametrize(
    "layer, lam, kappa", [(AGLU, (0, 1), (1.0, 1.3)), (APA, (0, 1), (-1, 0))]
)
def test_published_ranges(layer, lam, kappa):
    module = layer(num_parameters=2000)
    for param, (low, high) in (
        (module.lambda_param, lam),
        (module.kappa_param, kappa),
    ):
        assert param.shape == (2000,)
        assert low <= param.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < param.max() <= high


@pytest.mark.parametrize(
    "init, reference, closeness",
    [("silu", F.silu, 1e-6), ("gelu", F.gelu, 0.021), ("relu", F.relu, 0.0056)],
)
def test_stand_ins(init, reference, closeness):
    x = torch.linspace(-6, 6, 1001)
    assert (AGLU(init=init)(x) - reference(x)).abs().max() <= closeness


def test_gate_starts():
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(APA(init="sigmoid")(x), x.sigmoid())
    module = APA(init=dict(lam=(0.2, 0.3), kappa=2))
    assert 0.2 <= module.lambda_param <= 0.3
    assert module.kappa_param == 2


def test_state_dict_and_training():
    module = AGLU(num_parameters=3)
    assert set(module.state_dict()) == {"lambda_param", "kappa_param"}
    module(torch.randn(2, 3, 4, 4)).sum().backward()
    assert all(p.grad.shape == (3,) for p in module.parameters())
    fixed = AGLU(learnable=False)
    assert not any(p.requires_grad for p in fixed.parameters())
    assert set(fixed.state_dict()) == {"lambda_param", "kappa_param"}


def test_reset_draws_again():
    module = AGLU(num_parameters=8)
    before = module.lambda_param.clone()
    module.reset_parameters()
    assert not torch.equal(before, module.lambda_param)


def test_starts_do_not_need_the_functions_of_nn_init(monkeypatch):
    """Libraries disable them while they build a model for a checkpoint."""
    monkeypatch.setattr(nn.init, "uniform_", lambda *args, **kwargs: None)
    for layer in (AGLU(4, init="gelu"), APA(4, init="gelu")):
        assert layer.lambda_param.tolist() == [1.0] * 4
        torch.testing.assert_close(layer.kappa_param, torch.full((4,), 1.702))


@pytest.mark.parametrize("kind", ["AGLU", "APA"])
def test_mmcv_builds_it_and_it_spares_its_input(kind):
    block = ConvModule(3, 8, 1, act_cfg=dict(type=kind), inplace=True)
    x = torch.randn(2, 8, 4, 4)
    kept = x.clone()
    block.activate(x)
    assert torch.equal(x, kept)
    assert isinstance(build_activation_layer(dict(type=kind)), nn.Module)
    assert "num_parameters=1, init='uniform'" in repr(block)


@pytest.mark.parametrize(
    "kwargs, error, text",
    [
        (
            dict(init="rellu"),
            ValueError,
            "init='rellu' of AGLU, expected one of .*'relu",
        ),
        (dict(init="sigmoid"), ValueError, "init='sigmoid' of AGLU"),
        (dict(init=3), TypeError, "init=3 of AGLU"),
        (dict(init=dict(lam=1)), TypeError, "dict\\(lam=..., kappa=...\\)"),
        (dict(init=dict(lam=-1, kappa=1)), ValueError, "expected lam >= 0"),
        (dict(init=dict(lam=(1, 0), kappa=1)), ValueError, "low <= high"),
        (dict(init=dict(lam="a", kappa=1)), ValueError, "holds 'a'"),
        (dict(num_parameters=0), ValueError, "num_parameters=0"),
    ],
)
def test_bad_arguments(kwargs, error, text):
    with pytest.raises(error, match=text):
        AGLU(**kwargs)


def test_channel_mismatch_says_so():
    with pytest.raises(ValueError, match=r"lam has shape \(4,\).*\(3,\).*axis 1"):
        AGLU(num_parameters=4)(torch.randn(1, 3, 2, 2))
    tokens = AGLU(num_parameters=4)
    assert tokens(torch.randn(2, 7, 4)).shape == (2, 7, 4)
    nhwc = AGLU(num_parameters=4, channel_dim=-1)
    assert nhwc(torch.randn(2, 5, 6, 4)).shape == (2, 5, 6, 4)


@pytest.mark.parametrize(
    ("options", "twin"),
    [
        (dict(negative_slope=0.1), torch.nn.LeakyReLU(0.1)),
        (dict(max_value=6.0), torch.nn.ReLU6()),
    ],
)
def test_leaky_and_bounded_stand_ins(options, twin):
    """Near the twin in value and slope, away from its corners."""
    activation = AGLU(init=dict(lam=1.0, kappa=1e4), **options).double()
    x = torch.linspace(-9, 9, 400, dtype=torch.float64, requires_grad=True)
    y, expected = activation(x), twin(x)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=0)
    grad, expected = (torch.autograd.grad(v.sum(), x)[0] for v in (y, expected))
    torch.testing.assert_close(grad, expected, atol=1e-4, rtol=0)
    assert str(options[next(iter(options))]) in repr(activation)


EXPORTED = [
    AGLU(),
    AGLU(num_parameters=8),
    AGLU(init=dict(lam=0.0, kappa=1.0)),
    AGLU(init="relu"),
    AGLU(init=dict(lam=1000.0, kappa=-3.0)),
    AGLU(negative_slope=0.1, max_value=6.0),
    AGLU(init="gelu", learnable=False),
    APA(num_parameters=8, init=dict(lam=(0, 2), kappa=(-1, 1))),
    APA(init=dict(lam=1e-4, kappa=1.0)),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("module", EXPORTED, ids=str)
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(module, dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), module).eval()
    path = tmp_path / "model.onnx"
    if dynamo:
        names = {axis: torch.export.Dim(f"size{axis}", min=1) for axis in (0, 2, 3)}
        sizes = dict(dynamic_shapes=(names,))
    else:
        sizes = dict(dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}})
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 8, 8),),
        path,
        input_names=["x"],
        dynamo=dynamo,
        **sizes,
    )
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert "Softplus" not in kinds and len(kinds) > 1
    session = onnxruntime.InferenceSession(path)
    for shape in ((1, 3, 5, 7), (3, 3, 32, 16)):
        x = 5 * torch.randn(shape)
        (found,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            expected = model(x)
        torch.testing.assert_close(
            torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5
        )
