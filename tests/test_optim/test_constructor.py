"""Weight decay of lambda and kappa with MMEngine's optimizer constructors."""

from collections import OrderedDict

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.optim import DefaultOptimWrapperConstructor, build_optim_wrapper
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from apa_mmdet.layers import AGLU
from apa_mmdet.optim.constructor import APAOptimWrapperConstructor, decay_advice

SGD = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=0.01)


@pytest.fixture(autouse=True)
def scope(monkeypatch):
    """Set the default scope to mmdet; call the value to set another, or none."""
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())

    def use(name):
        DefaultScope._instance_dict.clear()
        if name is not None:
            DefaultScope.get_instance("test", scope_name=name)

    use("mmdet")
    return use


class Block(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.act = activation
        self.norm = nn.BatchNorm2d(3)
        self.depthwise = nn.Conv2d(3, 3, 1, groups=3)


class Toy(nn.Module):
    """Parameters of every kind that paramwise_cfg distinguishes."""

    def __init__(self, activation=AGLU):
        super().__init__()
        self.backbone = nn.Sequential(Block(activation()), Block(activation()))
        self.act = activation()
        self.head = nn.Linear(3, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def settings(wrapper, model):
    """Each parameter's settings by name, in the optimizer's order."""
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        names[id(param)]: {key: v for key, v in group.items() if key != "params"}
        for group in wrapper.optimizer.param_groups
        for param in group["params"]
    }


def decays(wrapper, model):
    return {name: s["weight_decay"] for name, s in settings(wrapper, model).items()}


def adaptive(name):
    return name.endswith((".lambda_param", ".kappa_param"))


def base_wrapper(model, optimizer, paramwise_cfg=None):
    return DefaultOptimWrapperConstructor(dict(optimizer=optimizer), paramwise_cfg)(
        model
    )


PARAMWISE = [
    None,
    {},
    dict(norm_decay_mult=0.0, bias_decay_mult=0.5, bypass_duplicate=True),
    dict(flat_decay_mult=2.0, dwconv_decay_mult=3.0, bias_lr_mult=2.0),
    dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
    dict(custom_keys={"backbone.0.act": dict(lr_mult=0.1, decay_mult=5.0)}),
    dict(custom_keys={"backbone.0": dict(weight_decay=0.7), "act": dict(lr_mult=3.0)}),
    dict(custom_keys={"lambda_param": dict(lr_mult=10.0)}),
]


@pytest.mark.parametrize("paramwise_cfg", PARAMWISE)
@pytest.mark.parametrize(
    "optimizer", [SGD, dict(type="AdamW", lr=0.1, weight_decay=0.05)]
)
def test_only_the_decay_of_lambda_and_kappa_changes(optimizer, paramwise_cfg):
    model = Toy()
    cfg = dict(optimizer=optimizer, paramwise_cfg=paramwise_cfg)
    actual = settings(build_optim_wrapper(model, cfg), model)
    expected = settings(base_wrapper(model, optimizer, paramwise_cfg), model)
    order = list(expected)
    if not paramwise_cfg:
        order = sorted(order, key=adaptive)  # stable: the others keep their order
    assert list(actual) == order
    for name in expected:
        if adaptive(name):
            assert expected[name]["weight_decay"] > 0, name
            expected[name]["weight_decay"] = 0.0
    assert actual == expected
    assert sum(map(adaptive, actual)) == 6


@pytest.mark.parametrize("paramwise_cfg", PARAMWISE)
def test_a_model_without_them_is_treated_as_before(paramwise_cfg):
    model = Toy(nn.PReLU)
    cfg = dict(optimizer=SGD, paramwise_cfg=paramwise_cfg)
    actual = build_optim_wrapper(model, cfg).optimizer.state_dict()
    assert actual == base_wrapper(model, SGD, paramwise_cfg).optimizer.state_dict()


def test_two_groups_without_paramwise_cfg():
    model = Toy()
    groups = build_optim_wrapper(model, dict(optimizer=SGD)).optimizer.param_groups
    named = list(model.named_parameters())
    assert [id(param) for param in groups[0]["params"]] == [
        id(param) for name, param in named if not adaptive(name)
    ]
    assert [id(param) for param in groups[1]["params"]] == [
        id(param) for name, param in named if adaptive(name)
    ]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]


def test_a_model_with_no_other_parameters():
    wrapper = build_optim_wrapper(AGLU(), dict(optimizer=SGD))
    assert [group["weight_decay"] for group in wrapper.optimizer.param_groups] == [0.0]


@pytest.mark.parametrize(
    "custom_keys, lam, kappa",
    [
        (dict(lambda_param=dict(decay_mult=1.0)), 0.01, 0.0),
        (dict(kappa_param=dict(decay_mult=0.5)), 0.0, 0.005),
        ({"act.lambda_param": dict(weight_decay=0.3)}, 0.3, 0.0),
        ({"head.lambda_param": dict(decay_mult=1.0)}, 0.0, 0.0),
        # The longer key decides everything except the decay.
        (
            {
                "lambda_param": dict(decay_mult=2.0),
                "backbone.0.act.": dict(lr_mult=0.1, decay_mult=4.0),
            },
            0.02,
            0.0,
        ),
        (
            {
                "kappa_param": dict(decay_mult=2.0),
                "backbone.0.act.kappa_param": dict(decay_mult=3.0),
                "0.act.kappa_param": dict(lr_mult=3.0),
            },
            0.0,
            0.03,
        ),
    ],
)
def test_a_custom_key_that_names_them_counts(custom_keys, lam, kappa):
    model = Toy()
    cfg = dict(optimizer=SGD, paramwise_cfg=dict(custom_keys=custom_keys))
    actual = settings(build_optim_wrapper(model, cfg), model)
    names = ("backbone.0.act.lambda_param", "backbone.0.act.kappa_param")
    assert [actual[name]["weight_decay"] for name in names] == [lam, kappa]
    lr_mult = custom_keys.get("backbone.0.act.", {}).get("lr_mult", 1)
    assert actual[names[0]]["lr"] == pytest.approx(0.1 * lr_mult)


@pytest.mark.parametrize(
    "optimizer, groups",
    [
        (dict(type="AdamW", lr=0.1), 2),  # decays by 0.01 by default
        (dict(type=torch.optim.AdamW, lr=0.1), 2),
        (dict(type="Adam", lr=0.1), 1),
        (dict(type="SGD", lr=0.1, weight_decay=0), 1),
        (dict(type="Rprop", lr=0.1), 1),
        (dict(type="LBFGS", lr=0.1), 1),  # refuses a second group
    ],
)
def test_two_groups_only_if_the_optimizer_decays(optimizer, groups):
    model = Toy()
    wrapper = build_optim_wrapper(model, dict(optimizer=optimizer))
    assert len(wrapper.optimizer.param_groups) == groups
    for name, setting in settings(wrapper, model).items():
        if adaptive(name):
            assert not setting.get("weight_decay")


def test_adamw_without_a_weight_decay_and_with_paramwise_cfg():
    model = Toy()
    cfg = dict(
        optimizer=dict(type="AdamW", lr=0.1), paramwise_cfg=dict(bias_lr_mult=2.0)
    )
    for name, decay in decays(build_optim_wrapper(model, cfg), model).items():
        assert decay == (0.0 if adaptive(name) else 0.01)


def test_rprop_with_paramwise_cfg():
    cfg = dict(
        optimizer=dict(type="Rprop", lr=0.1), paramwise_cfg=dict(bias_lr_mult=2.0)
    )
    for group in build_optim_wrapper(Toy(), cfg).optimizer.param_groups:
        assert "weight_decay" not in group


@pytest.mark.parametrize("paramwise_cfg", [None, dict(bias_decay_mult=0.0)])
def test_a_step_decays_all_but_lambda_and_kappa(paramwise_cfg):
    model = Toy()
    before = {name: param.clone() for name, param in model.named_parameters()}
    cfg = dict(optimizer=SGD, paramwise_cfg=paramwise_cfg)
    wrapper = build_optim_wrapper(model, cfg)
    for param in model.parameters():
        if param.requires_grad:
            param.grad = torch.zeros_like(param)
    wrapper.step()
    torch.testing.assert_close(model.head.weight, before["head.weight"] * 0.999)
    for name, param in model.named_parameters():
        if adaptive(name):
            assert param.equal(before[name]), name


@pytest.mark.parametrize("paramwise_cfg", [None, dict(bias_decay_mult=0.0)])
def test_a_wrapped_model(paramwise_cfg):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = Toy()
    cfg = dict(optimizer=SGD, paramwise_cfg=paramwise_cfg)
    actual = settings(build_optim_wrapper(Wrapper(model), cfg), model)
    assert actual == settings(build_optim_wrapper(model, cfg), model)


@pytest.mark.parametrize(
    "paramwise_cfg", [None, dict(bias_decay_mult=0.0), dict(bypass_duplicate=True)]
)
def test_an_activation_with_two_parents_is_listed_once(paramwise_cfg):
    model = Toy()
    model.backbone[1].act = model.act = model.backbone[0].act
    cfg = dict(optimizer=SGD, paramwise_cfg=paramwise_cfg)
    wrapper = build_optim_wrapper(model, cfg)
    listed = [
        id(p) for group in wrapper.optimizer.param_groups for p in group["params"]
    ]
    assert len(listed) == len(set(listed))
    actual = {k: v for k, v in decays(wrapper, model).items() if adaptive(k)}
    assert actual == {f"backbone.0.act.{n}_param": 0.0 for n in ("lambda", "kappa")}


@pytest.mark.filterwarnings("ignore:.*GradScaler")  # there may be no GPU
@pytest.mark.parametrize("amp", [False, True])
def test_the_wrapper_follows_the_config(amp, monkeypatch):
    cfg = ConfigDict(optimizer=SGD, clip_grad=dict(max_norm=35), accumulative_counts=3)
    if amp:
        monkeypatch.setattr(
            "mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available",
            lambda: True,
        )
        cfg.update(type="AmpOptimWrapper", loss_scale=8.0)
    model = Toy()
    wrapper = build_optim_wrapper(model, cfg)
    assert type(wrapper).__name__ == ("AmpOptimWrapper" if amp else "OptimWrapper")
    assert wrapper.clip_grad_kwargs == dict(max_norm=35)
    assert wrapper._accumulative_counts == 3
    if amp:
        assert wrapper._scale_update_param == 8.0
    for name, decay in decays(wrapper, model).items():
        assert decay == (0.0 if adaptive(name) else 0.01)


@pytest.mark.parametrize(
    "default_scope, constructor, decayed",
    [
        ("mmdet", None, False),
        ("mmdet", "DefaultOptimWrapperConstructor", False),
        ("mmdet", "mmdet.DefaultOptimWrapperConstructor", False),
        ("mmengine", "mmdet.DefaultOptimWrapperConstructor", False),
        (None, "mmdet.DefaultOptimWrapperConstructor", False),
        (None, APAOptimWrapperConstructor, False),
        # In the other cases decay_advice tells the user what to do.
        ("mmdet", "mmengine.DefaultOptimWrapperConstructor", True),
        ("mmdet", DefaultOptimWrapperConstructor, True),
        ("mmengine", None, True),
        (None, None, True),
    ],
)
def test_which_constructor_is_found(scope, default_scope, constructor, decayed):
    scope(default_scope)
    cfg = dict(optimizer=SGD)
    if constructor is not None:
        cfg["constructor"] = constructor
    model = Toy()
    actual = decays(build_optim_wrapper(model, cfg), model)
    assert actual["act.lambda_param"] == actual["act.kappa_param"] == 0.01 * decayed
    advice = decay_advice(cfg)
    assert (advice is not None) == decayed
    if decayed:
        assert "get the optimizer's weight decay" in advice
        cfg.update(advised(advice))
        actual = decays(build_optim_wrapper(model, cfg), model)
        assert actual["act.lambda_param"] == actual["act.kappa_param"] == 0.0
        assert decay_advice(cfg) is None


def advised(advice):
    """Return what the last line of the advice adds to optim_wrapper."""
    space = {}
    exec(advice.splitlines()[-1].strip(), space)
    return space["optim_wrapper"]


def test_advice_without_a_config(scope):
    assert decay_advice() is None
    scope(None)
    assert "constructor='mmdet.DefaultOptimWrapperConstructor'" in decay_advice()


def test_advice_about_an_unknown_constructor():
    class Stranger(DefaultOptimWrapperConstructor):
        pass

    cfg = dict(constructor=Stranger, optimizer=SGD)
    advice = decay_advice(cfg)
    assert "Stranger" in advice and "may get weight decay" in advice
    cfg.update(advised(advice))
    assert decay_advice(cfg) is None
    model = Toy()
    assert decays(build_optim_wrapper(model, cfg), model)["act.lambda_param"] == 0.0

    assert decay_advice(dict(constructor=Stranger, optimizer={"weight_decay": 0})) is (
        None
    )
    del cfg["paramwise_cfg"]["custom_keys"]["kappa_param"]
    assert decay_advice(cfg) is not None


@pytest.mark.parametrize("decay_type", ["layer_wise", "stage_wise"])
def test_learning_rate_decay_exempts_them_too(decay_type):
    class ConvNeXtLike(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList(nn.Sequential(Block(AGLU(3))) for _ in "1234")

    model = nn.Module()
    model.backbone, model.neck = ConvNeXtLike(), Block(AGLU())
    cfg = dict(
        constructor="LearningRateDecayOptimizerConstructor",
        optimizer=SGD,
        paramwise_cfg=dict(decay_rate=0.7, decay_type=decay_type, num_layers=6),
    )
    actual = decays(build_optim_wrapper(model, cfg), model)
    assert sum(map(adaptive, actual)) == 10
    assert actual["neck.conv.weight"] == 0.01
    assert {decay for name, decay in actual.items() if adaptive(name)} == {0.0}
    assert decay_advice(cfg) is None


def test_rtmdet():
    """norm_decay_mult, bias_decay_mult, bypass_duplicate and shared convolutions."""
    cfg = get_config("mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py")
    head = cfg.model.bbox_head
    head.update(in_channels=8, feat_channels=8, act_cfg=dict(type="AGLU"))
    model = nn.Module()
    model.bbox_head = MODELS.build(head)
    actual = decays(build_optim_wrapper(model, cfg.optim_wrapper), model)
    assert {decay for name, decay in actual.items() if adaptive(name)} == {0.0}
    assert actual["bbox_head.cls_convs.0.0.conv.weight"] == 0.05
    assert actual["bbox_head.cls_convs.0.0.bn.weight"] == 0.0
    assert sum(map(adaptive, actual)) == sum(
        adaptive(name) for name, _ in model.named_parameters()
    )


@DATASETS.register_module(force=True)
class DecayToy(BaseDataset):
    def load_data_list(self):
        return [{}] * 4

    def prepare_data(self, idx):
        return dict(inputs=torch.full((3,), idx - 1.5))


class Trained(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.act = AGLU(init="silu")

    def forward(self, inputs, mode):
        return dict(loss=self.act(self.fc(torch.stack(inputs))).square().sum())


def runner(work_dir, paramwise_cfg, **kwargs):
    torch.manual_seed(0)
    cfg = Config(
        dict(
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=2,
                sampler=dict(type="DefaultSampler", shuffle=False),
                dataset=dict(type="DecayToy"),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=SGD),
            param_scheduler=dict(type="ExponentialLR", gamma=0.5),
            default_scope="mmdet",
            default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
            experiment_name=f"decay_{work_dir.name}_{bool(paramwise_cfg)}",
            log_level="WARNING",
            **kwargs,
        )
    )
    if paramwise_cfg:
        cfg.optim_wrapper.paramwise_cfg = paramwise_cfg
    return Runner(model=Trained(), **cfg)


@pytest.mark.parametrize(
    "paramwise_cfg", [None, dict(custom_keys=dict(act=dict(lr_mult=0.5)))]
)
def test_a_run_and_its_resumption(tmp_path, paramwise_cfg):
    whole = runner(tmp_path / "whole", paramwise_cfg)
    whole.train()
    resumed = runner(
        tmp_path / "resumed",
        paramwise_cfg,
        resume=True,
        load_from=str(tmp_path / "whole" / "epoch_1.pth"),
    )
    resumed.train()
    assert resumed.iter == 4
    actual = settings(resumed.optim_wrapper, resumed.model)
    assert actual == settings(whole.optim_wrapper, whole.model)
    mult = 0.5 if paramwise_cfg else 1
    for name, setting in actual.items():
        assert setting["weight_decay"] == (0.0 if adaptive(name) else 0.01)
        assert setting["lr"] == 0.1 * 0.5 * (mult if "act" in name else 1)
    for (name, param), other in zip(
        whole.model.named_parameters(), resumed.model.parameters()
    ):
        assert param.equal(other), name
        momentum = [
            run.optim_wrapper.optimizer.state[p]["momentum_buffer"]
            for run, p in ((whole, param), (resumed, other))
        ]
        assert momentum[0].equal(momentum[1]) and momentum[0].any()


def test_a_checkpoint_with_other_groups_is_refused():
    model = Toy()
    saved = base_wrapper(model, SGD).state_dict()
    wrapper = build_optim_wrapper(model, dict(optimizer=SGD))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        wrapper.load_state_dict(saved)
