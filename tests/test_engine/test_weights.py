"""Whether a checkpoint has the weights that a model is evaluated with."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from apa_mmdet.engine.weights import check_weights
from apa_mmdet.layers import AGLU
from apa_mmdet.models import APALoss


def model(classes=4, act=AGLU, learnable="shared", mask_head=True):
    """Return a model with the parts of a detector that matter here."""
    box_head = nn.Module()
    box_head.fc_cls = nn.Linear(8, classes)
    box_head.loss_cls = APALoss(4, learnable=learnable)
    parts = dict(
        backbone=nn.Sequential(
            OrderedDict(conv=nn.Conv2d(3, 8, 1), bn=nn.BatchNorm2d(8), act=act())
        ),
        bbox_head=box_head,
    )
    if mask_head:
        parts["mask_head"] = nn.Sequential(nn.Conv2d(8, 8, 1), act())
    return nn.ModuleDict(parts)


def problem(own, state_dict):
    """Return the error about a state dict, without what all errors say."""
    with pytest.raises(ValueError) as error:
        check_weights(own, {"state_dict": state_dict}, "file.pth")
    start, _, end = str(error.value).partition(", so the model would not be")
    assert end.endswith("; give the config that it was trained with")
    return start


def test_weights_that_fit_are_accepted():
    trained = model()
    for file in (
        trained.state_dict(),
        {f"module.{key}": value for key, value in trained.state_dict().items()},
    ):
        own = model()
        check_weights(own, {"state_dict": file, "meta": {}}, "file.pth")
        assert all(map(torch.equal, own.parameters(), trained.parameters()))


@pytest.mark.parametrize(
    "saved, own",
    [
        (dict(act=nn.ReLU), dict()),  # the weights of the original, unconverted
        (dict(learnable=None), dict(learnable="class")),
        (dict(), dict(mask_head=False)),
        (dict(), dict(learnable="shared")),
    ],
)
def test_differences_without_meaning_are_accepted(saved, own):
    check_weights(model(**own), model(**saved).state_dict(), "file.pth")


def test_counters_and_frequencies_may_be_missing():
    state = model().state_dict()
    del state["backbone.bn.num_batches_tracked"]
    del state["bbox_head.loss_cls.class_frequency"]
    check_weights(model(), state, "file.pth")


@pytest.mark.parametrize(
    "saved, own, text",
    [
        (
            dict(classes=5),
            dict(),
            "has bbox_head.fc_cls.weight of shape (5, 8), expected (4, 8) as in the "
            "config (and 1 more)",
        ),
        (
            dict(learnable="class"),
            dict(),
            "has bbox_head.loss_cls.lambda_param of shape (4,), expected (1,) as in "
            "the config (and 1 more)",
        ),
        (dict(mask_head=False), dict(), "lacks mask_head.0.weight (and 1 more)"),
        (
            dict(),
            dict(act=nn.ReLU),
            "has backbone.act.lambda_param, an activation that the config lacks "
            "(and 3 more)",
        ),
        (
            dict(),
            dict(learnable=None),
            "has bbox_head.loss_cls.lambda_param, an activation that the config lacks "
            "(and 1 more)",
        ),
    ],
)
def test_parts_that_do_not_load_are_named(saved, own, text):
    got = problem(model(**own), model(**saved).state_dict())
    assert got == f"checkpoint file.pth {text}"


def test_weights_of_another_model_are_named():
    weights = {f"model.{key}": value for key, value in model().state_dict().items()}
    expected = (
        "has none of the model's weights; its first is model.backbone.conv.weight"
    )
    assert problem(model(), weights).endswith(expected)


def test_statistics_of_norms_must_be_there():
    state = model().state_dict()
    del state["backbone.bn.running_var"]
    assert problem(model(), state).endswith("lacks backbone.bn.running_var")


def test_what_a_module_says_of_its_weights_is_passed_on():
    def refuse(*_):
        raise RuntimeError("this published checkpoint has another architecture")

    own = model()
    own.backbone._register_load_state_dict_pre_hook(refuse)
    assert problem(own, own.state_dict()) == (
        "checkpoint file.pth does not fit: this published checkpoint has another "
        "architecture"
    )
