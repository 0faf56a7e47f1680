"""APAResNet and APAResNeXt against mmdet's own."""

import copy
from functools import partial

import pytest
import torch
from mmdet.models.backbones import ResNet, ResNeXt

from apa_mmdet.conversion import convert_activations
from apa_mmdet.layers import AGLU
from apa_mmdet.models import APAResNet, APAResNeXt
from apa_mmdet.ops import use_implementation
from apa_mmdet.testing.memory import saved_bytes

RELU = dict(type="ReLU")
SMALL = dict(base_channels=8)
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

VARIANTS = {
    "r18": (APAResNet, ResNet, dict(depth=18, **SMALL)),
    "r50": (APAResNet, ResNet, dict(depth=50, **SMALL)),
    "r101_caffe": (APAResNet, ResNet, dict(depth=101, style="caffe", **SMALL)),
    "deep_stem": (
        APAResNet,
        ResNet,
        dict(depth=50, deep_stem=True, avg_down=True, **SMALL),
    ),
    "with_cp": (APAResNet, ResNet, dict(depth=50, with_cp=True, **SMALL)),
    "plugins": (
        APAResNet,
        ResNet,
        dict(
            depth=50,
            plugins=[
                dict(
                    cfg=dict(type="ContextBlock", ratio=0.25, postfix=str(i)),
                    position=f"after_conv{i}",
                )
                for i in (1, 2, 3)
            ],
            **SMALL,
        ),
    ),
    "dcn": (
        APAResNet,
        ResNet,
        dict(
            depth=50,
            dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
            stage_with_dcn=(False, True, True, True),
            **SMALL,
        ),
    ),
    "frozen": (APAResNet, ResNet, dict(depth=50, frozen_stages=2, **SMALL)),
    "x50": (APAResNeXt, ResNeXt, dict(depth=50, groups=4, base_width=4)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_relu_it_is_mmdets(variant):
    ours, theirs, kwargs = VARIANTS[variant]
    models = []
    for build in (lambda **k: ours(act_cfg=RELU, **k), theirs):
        torch.manual_seed(0)
        # DCN configs are consumed while building.
        copied = {
            key: dict(value) if isinstance(value, dict) else value
            for key, value in kwargs.items()
        }
        model = build(**copied)
        model.init_weights()
        model.train()
        models.append(model)
    state, expected = (model.state_dict() for model in models)
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)
    outputs = [model(X) for model in models]
    for out, other in zip(*outputs):
        assert torch.equal(out, other)
    for out in outputs:
        sum(level.square().mean() for level in out).backward()
    for (key, param), (_, other) in zip(*(m.named_parameters() for m in models)):
        assert param.requires_grad == other.requires_grad, key
        if param.grad is not None or other.grad is not None:
            torch.testing.assert_close(param.grad, other.grad, msg=key)


@pytest.mark.parametrize(
    "depth, sites", [(18, 17), (34, 33), (50, 49), (101, 100), (152, 151)]
)
def test_one_activation_per_site(depth, sites):
    model = APAResNet(depth, **SMALL)
    activations = [m for m in model.modules() if isinstance(m, AGLU)]
    assert len(activations) == len({id(m) for m in activations}) == sites
    assert model.relu in activations


def test_each_site_is_called_once_and_gets_a_gradient():
    model = APAResNet(50, with_cp=True, norm_eval=False, **SMALL)
    calls = []
    for name, module in model.named_modules():
        if isinstance(module, AGLU):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.train()
    outputs = model(X)
    assert len(calls) == len(set(calls)) == 49
    sum(out.square().mean() for out in outputs).backward()
    for key, param in model.named_parameters():
        if key.endswith(("lambda_param", "kappa_param")):
            assert param.grad is not None and param.grad.isfinite().all(), key


@pytest.mark.parametrize("deep_stem", [False, True])
def test_frozen_stages_freeze_their_activations(deep_stem):
    model = APAResNet(50, frozen_stages=1, deep_stem=deep_stem, **SMALL)
    model.train()
    stem = "stem." if deep_stem else "relu."
    trainable = {
        key: param.requires_grad
        for key, param in model.named_parameters()
        if key.endswith("_param")
    }
    assert any(key.startswith(stem) for key in trainable)
    for key, requires_grad in trainable.items():
        assert requires_grad != key.startswith((stem, "layer1.")), key
    unfrozen = APAResNet(50, frozen_stages=-1, **SMALL)
    unfrozen.train()
    assert all(param.requires_grad for param in unfrozen.parameters())


def test_checkpoints_of_mmdets_resnet_load():
    reference = ResNet(50, **SMALL)
    result = APAResNet(50, **SMALL).load_state_dict(
        reference.state_dict(), strict=False
    )
    assert not result.unexpected_keys
    assert all(key.endswith("_param") for key in result.missing_keys)


def test_relu_start_keeps_pretrained_features():
    torch.manual_seed(0)
    reference = ResNet(50, zero_init_residual=False)
    reference.init_weights()
    model = APAResNet(50, act_cfg=dict(type="AGLU", init="relu"))
    model.load_state_dict(reference.state_dict(), strict=False)
    for backbone in (reference, model):
        backbone.eval()
    image = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        for out, expected in zip(model(image), reference(image)):
            assert (out - expected).norm() <= 0.015 * expected.norm()


def se(gate):
    cfg = dict(type="APASELayer", ratio=2, gate_cfg=dict(type=gate))
    return dict(plugins=[dict(cfg=cfg, position="after_conv3")])


FUSED = {
    "r18": (APAResNet, dict(depth=18, **SMALL)),
    "r50": (APAResNet, dict(depth=50, **SMALL)),
    "se_r50": (APAResNet, dict(depth=50, **se("APA"), **SMALL)),
    "x50": (APAResNeXt, dict(depth=50, groups=4, base_width=4, **se("Sigmoid"))),
    "deep_stem": (APAResNet, dict(depth=50, deep_stem=True, avg_down=True, **SMALL)),
    "with_cp": (APAResNet, dict(depth=18, with_cp=True, **SMALL)),
    "fixed_weights": (
        APAResNet,
        dict(depth=18, norm_cfg=dict(type="BN", requires_grad=False), **SMALL),
    ),
}


def with_statistics(model):
    """Give the norms weights and statistics that differ from 1 and 0."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(low + (high - low) * drawn)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def in_training(variant):
    """Return a backbone in training mode with fixed statistics."""
    build, kwargs = FUSED[variant]
    torch.manual_seed(0)
    model = with_statistics(build(norm_eval=True, frozen_stages=-1, **kwargs))
    model.train()
    return model


@pytest.mark.parametrize("variant", FUSED)
def test_fusing_the_norms_changes_nothing(variant):
    """A norm with a hook is not fused."""
    model = in_training(variant)
    model.double()
    results = []
    for fuses in (True, False):
        if not fuses:
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.register_forward_hook(lambda *_: None)
        model.zero_grad()
        x = X.double().requires_grad_()
        outs = model(x)
        sum(out.square().mean() for out in outs).backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        results.append((outs, {**grads, "x": x.grad}))
    (outs, grads), (expected_outs, expected_grads) = results
    for out, expected in zip(outs, expected_outs):
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)
    for name, expected in expected_grads.items():
        if expected is None:
            assert grads[name] is None, name
        else:
            torch.testing.assert_close(
                grads[name], expected, rtol=1e-8, atol=1e-11, msg=name
            )


@pytest.mark.parametrize("variant", FUSED)
def test_compiled_kernels_give_what_plain_torch_does(variant):
    """Float32 against float64: maps to 1e-5, gradients to 1e-4 of their largest."""
    model = in_training(variant)
    results = []
    for name, dtype in (("native", torch.float32), ("plain", torch.float64)):
        model.to(dtype).zero_grad()
        x = X.to(dtype, copy=True).requires_grad_()
        with use_implementation(name):
            outs = model(x)
            sum(out.square().mean() for out in outs).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((outs, [x.grad, *grads]))
    (outs, grads), (expected_outs, expected_grads) = results
    # Where a sum cancels, what rounding leaves is not smaller with it.
    rounding = 1e-7 * max(grad.abs().max() for grad in expected_grads)
    for actual, expected, tolerance, allowance in (
        (outs, expected_outs, 1e-5, 0),
        (grads, expected_grads, 1e-4, rounding),
    ):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected):
            off = (one - other).abs().max()
            assert off <= tolerance * other.abs().max() + allowance


@pytest.mark.parametrize(
    ("build", "kwargs", "twin", "ratio"),
    [
        (APAResNet, dict(depth=50), {}, 1.0),
        (APAResNet, dict(depth=50, **se("APA")), se("Sigmoid"), 0.92),
        (APAResNet, dict(depth=101, **se("APA")), se("Sigmoid"), 0.92),
        (APAResNeXt, dict(depth=50, groups=4, base_width=4), {}, 1.0),
    ],
)
def test_saves_less_for_backward_than_its_relu_twin(build, kwargs, twin, ratio):
    x = torch.randn(2, 3, 320, 320)
    small = SMALL if build is APAResNet else {}
    sizes = []
    for act_cfg, changes in ((dict(type="AGLU"), {}), (RELU, twin)):
        options = {**kwargs, **changes, **small}
        for norm_eval in (True, False):
            options.update(norm_eval=norm_eval, frozen_stages=-1)
            model = build(act_cfg=act_cfg, **options)
            model.train()
            sizes.append(saved_bytes(partial(model, x), model))
    assert sizes[0] <= ratio * sizes[2]
    assert sizes[1] <= ratio * sizes[3]  # while norms train


CONVERTED = {
    "r18": (ResNet, dict(depth=18)),
    "r50": (ResNet, dict(depth=50)),
    "se_r50": (ResNet, dict(depth=50, **se("APA"))),
    "x50": (ResNeXt, dict(depth=50, groups=4, base_width=4)),
}


@pytest.mark.parametrize("variant", CONVERTED)
def test_a_converted_resnet_is_an_apa_resnet(variant):
    """Blocks of the same class, the same keys, and the same maps."""
    build, kwargs = CONVERTED[variant]
    kwargs = {**kwargs, **(SMALL if build is ResNet else {})}
    converted = build(**kwargs)
    # APAResNet leaves the ReLU in the excitation.
    convert_activations(converted, filter_fn=lambda _, path: "excitation" not in path)
    ours = (APAResNet if build is ResNet else APAResNeXt)(**kwargs)
    for name in ours.res_layers:
        blocks = zip(getattr(converted, name), getattr(ours, name))
        assert all(type(one) is type(other) for one, other in blocks)
    assert list(converted.state_dict()) == list(ours.state_dict())
    converted.load_state_dict(ours.state_dict())
    converted.eval()
    ours.eval()
    # Nothing is fused then, not even APAResNet's stem.
    with torch.no_grad(), use_implementation("plain"):
        for one, other in zip(converted(X), ours(X)):
            assert torch.equal(one, other)


@pytest.mark.parametrize("variant", CONVERTED)
def test_a_converted_resnet_fuses_its_norms(variant):
    build, kwargs = CONVERTED[variant]
    kwargs = {**kwargs, **(SMALL if build is ResNet else {})}
    torch.manual_seed(0)
    model = with_statistics(build(norm_eval=True, frozen_stages=-1, **kwargs))
    convert_activations(model, init="uniform")
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    unfused = copy.deepcopy(model)
    for module in unfused.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: None)
    x = torch.randn(2, 3, 64, 64)
    sizes = [saved_bytes(partial(each, x), each) for each in (model, unfused)]
    assert sizes[0] < 0.87 * sizes[1]  # the stem is not fused
    outs = [each.double()(x.double()) for each in (model, unfused)]
    for ours, expected in zip(*outs):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    for maps in outs:
        sum(level.square().mean() for level in maps).backward()
    others = dict(unfused.named_parameters())
    for name, param in model.named_parameters():
        torch.testing.assert_close(
            param.grad, others[name].grad, rtol=1e-8, atol=1e-11, msg=name
        )


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_other_norms_are_not_fused(norm):
    """Statistics of the batch, or of groups, cannot be fused."""
    norm_cfg = dict(type=norm, **(dict(num_groups=4) if norm == "GN" else {}))
    model = APAResNet(depth=18, norm_cfg=norm_cfg, norm_eval=False, **SMALL)
    model.train()
    called = []
    model.layer2[0].norm1.register_forward_pre_hook(lambda *_: called.append(1))
    model.layer2[0].act1.register_forward_pre_hook(lambda *_: called.append(2))
    model(X)
    assert called == [1, 2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(dynamo, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = with_statistics(APAResNet(depth=50, norm_eval=True, **se("APA"), **SMALL))
    model.train()  # with fixed statistics, so the norms would be fused
    path = tmp_path / "model.onnx"
    names = ["c2", "c3", "c4", "c5"]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    torch.onnx.export(
        model,
        (X,),
        path,
        output_names=names,
        dynamo=dynamo,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    session = onnxruntime.InferenceSession(path)
    actual = session.run(names, {session.get_inputs()[0].name: X.numpy()})
    for ours, expected in zip(actual, model(X)):
        expected = expected.detach()
        torch.testing.assert_close(
            torch.from_numpy(ours), expected, rtol=1e-5, atol=1e-5 * expected.max()
        )
