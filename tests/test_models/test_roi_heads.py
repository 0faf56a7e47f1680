"""APABBoxHead's initialisation and activations; the predictors."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.roi_heads import FCNMaskHead
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from torch import nn

from apa_mmdet.layers import AGLU
from apa_mmdet.models import CosineConv2d, WrappedCauchyLinear

SIZES = dict(in_channels=8, fc_out_channels=64, num_classes=30)


def build(**kwargs):
    loss = dict(type="APALoss", num_classes=30) | kwargs.pop("loss", {})
    torch.manual_seed(0)
    head = MODELS.build(dict(type="APABBoxHead", loss_cls=loss, **SIZES, **kwargs))
    head.init_weights()
    return head


def test_published_initialisation_with_xavier_fcs():
    head = build()
    assert head.fc_cls.weight.eq(0.001).all()
    assert head.fc_cls.bias.eq(-2).all()
    assert head.fc_cls.out_features == 30
    fc = head.shared_fcs[0]
    bound = (6 / (fc.in_features + fc.out_features)) ** 0.5
    assert 0.98 * bound < fc.weight.abs().max() <= bound
    assert 0.0008 < head.fc_reg.weight.std() < 0.0012


@pytest.mark.parametrize("lam, kappa", [(0.0, 1.0), (0.4, 1.5), (1.0, 0.7)])
@pytest.mark.parametrize("learnable", [None, "class"])
def test_every_class_starts_at_the_prior(lam, kappa, learnable):
    head = build(
        prior=0.02, loss=dict(lam=lam, kappa=kappa, learnable=learnable)
    ).eval()
    logits = head.fc_cls.bias[None]
    scores = head.loss_cls.get_activation(logits)[:, :-1]
    torch.testing.assert_close(scores, torch.full_like(scores, 0.02))


@pytest.mark.parametrize("init", [None, "frequency"])
def test_every_class_starts_at_its_share_of_the_proposals(init):
    loss = dict(type="APALoss", num_classes=3, learnable="class", init=init)
    config = dict(type="APABBoxHead", loss_cls=loss, **SIZES | dict(num_classes=3))
    head = MODELS.build(dict(config, prior="frequency", foreground_share=0.2))
    with pytest.raises(RuntimeError, match="'frequency' needs the training data's"):
        head.init_weights()
    head = MODELS.build(dict(config, prior="frequency", foreground_share=0.2))
    head.loss_cls.set_class_frequency(torch.tensor([0.6, 0.2, 0.0]))
    head.init_weights()
    scores = head.loss_cls.get_activation(head.fc_cls.bias[None])[0, :-1]
    # The last one is below the rarest class that has images.
    torch.testing.assert_close(scores, torch.tensor([0.15, 0.05, 0.025]))


def test_it_computes_what_shared2fc_computes():
    head = build()
    loss = dict(type="APALoss", num_classes=30)
    reference = Shared2FCBBoxHead(loss_cls=loss, **SIZES)
    reference.load_state_dict(head.state_dict())
    x = torch.randn(5, 8, 7, 7)
    for ours, theirs in zip(head(x), reference(x)):
        assert torch.equal(ours, theirs)


def test_each_fc_has_its_own_activation():
    head = build(act_cfg=dict(type="AGLU"), loss=dict(learnable="shared"))
    first, second = head.shared_acts
    assert isinstance(first, AGLU) and isinstance(second, AGLU) and first is not second
    x = torch.randn(5, 8, 7, 7)
    cls_score, _ = head(x)
    hidden = first(head.shared_fcs[0](x.flatten(1)))
    torch.testing.assert_close(
        cls_score, head.fc_cls(second(head.shared_fcs[1](hidden)))
    )


def test_other_losses_keep_mmdets_initialisation():
    torch.manual_seed(0)
    head = MODELS.build(dict(type="APABBoxHead", **SIZES))
    assert isinstance(head.loss_cls, nn.Module)
    assert head.init_cfg == Shared2FCBBoxHead(**SIZES).init_cfg


@pytest.mark.parametrize("prior", [0, 1, 1.5, "class"])
def test_prior_must_be_a_probability(prior):
    with pytest.raises(ValueError, match=f"prior={prior}, expected a probability"):
        build(prior=prior)
    with pytest.raises(ValueError, match="foreground_share=1.0, expected a share"):
        build(prior="frequency", foreground_share=1.0)


def test_prior_needs_an_apa_loss_and_no_init_cfg():
    with pytest.raises(TypeError, match="prior=0.01 needs loss_cls of type 'APALoss'"):
        MODELS.build(dict(type="APABBoxHead", prior=0.01, **SIZES))
    with pytest.raises(ValueError, match="prior=0.01 and init_cfg"):
        build(prior=0.01, init_cfg=dict(type="Normal", layer="Linear"))
    with pytest.raises(ValueError, match="WrappedCauchyLinear has none"):
        build(prior=0.01, cls_predictor_cfg=dict(type="WrappedCauchyLinear"))


def test_cosine_predictor_in_the_mask_head():
    torch.manual_seed(0)
    head = FCNMaskHead(
        num_convs=1,
        in_channels=8,
        conv_out_channels=8,
        num_classes=30,
        predictor_cfg=dict(type="CosineConv2d"),
    )
    head.init_weights()
    predictor = head.conv_logits
    assert isinstance(predictor, CosineConv2d)
    assert predictor.bias.eq(0).all()
    x = torch.randn(2, 8, 5, 5)
    cosine = torch.einsum(
        "nchw,kc->nkhw",
        F.normalize(x, dim=1),
        F.normalize(predictor.weight[:, :, 0, 0]),
    )
    torch.testing.assert_close(predictor(x), 4.5**2 * cosine, rtol=1e-4, atol=1e-4)
    head(torch.randn(2, 8, 14, 14)).square().sum().backward()
    assert predictor.tempearture.shape == (1,)
    assert predictor.tempearture.grad.isfinite().all()


def test_cosine_predictor_with_a_fixed_temperature():
    predictor = CosineConv2d(8, 4, 1, temperature=20, learnable=False)
    assert set(predictor.state_dict()) == {"weight", "bias"}
    x = torch.randn(2, 8, 3, 3)
    weight = F.normalize(predictor.weight[:, :, 0, 0])
    cosine = torch.einsum("nchw,kc->nkhw", F.normalize(x, dim=1), weight)
    expected = 20 * cosine + predictor.bias[:, None, None]
    torch.testing.assert_close(predictor(x), expected, rtol=1e-4, atol=1e-4)


def test_cosine_predictor_refuses_other_kernels_and_temperatures():
    with pytest.raises(ValueError, match="kernel_size"):
        CosineConv2d(8, 4, 3)
    with pytest.raises(ValueError, match="temperature=0"):
        CosineConv2d(8, 4, 1, temperature=0)


def test_wrapped_cauchy_linear_is_the_density():
    torch.manual_seed(0)
    layer = WrappedCauchyLinear(5, 4, scale=30.0)
    with torch.no_grad():
        layer.concentration.copy_(torch.tensor([-2.0, 0.0, 1.0, 3.0]))
    x = torch.randn(6, 5)
    logits = layer(x)
    for row, feature in enumerate(x.double()):
        for column, weight in enumerate(layer.weight.double()):
            cosine = feature @ weight / feature.norm() / weight.norm()
            g = layer.concentration[column].double().sigmoid()
            density = (1 - g**2) / (1 + g**2 - 2 * g * cosine) / (2 * torch.pi)
            torch.testing.assert_close(
                logits[row, column].double(), 30 * density, rtol=1e-5, atol=1e-6
            )


def test_wrapped_cauchy_linear_in_a_box_head():
    register_all_modules(init_default_scope=True)
    for learnable in (False, True):
        head = MODELS.build(
            dict(
                type="Shared2FCBBoxHead",
                in_channels=4,
                fc_out_channels=8,
                roi_feat_size=2,
                num_classes=3,
                cls_predictor_cfg=dict(type="WrappedCauchyLinear", learnable=learnable),
                loss_cls=dict(type="CrossEntropyLoss"),
            )
        )
        head.init_weights()
        assert (head.fc_cls.concentration == -1).all()
        logits, _ = head(torch.randn(6, 4, 2, 2))
        assert logits.shape == (6, 4)
        logits.softmax(1)[:, 0].sum().backward()
        for name, param in head.fc_cls.named_parameters():
            assert param.grad.isfinite().all() and param.grad.any(), name
        names = {"weight", "concentration"} | ({"log_scale"} if learnable else set())
        assert set(head.fc_cls.state_dict()) == names


def test_wrapped_cauchy_linear_stays_finite():
    layer = WrappedCauchyLinear(5, 2, concentration=12.0)
    x = torch.cat([layer.weight[:1].detach(), torch.zeros(1, 5)]).requires_grad_()
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = layer(x.to(dtype))
        assert logits.dtype == torch.float32 and logits.isfinite().all()
        logits.logsumexp(1).sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("bad", [dict(scale=0), dict(concentration=float("nan"))])
def test_wrapped_cauchy_linear_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        WrappedCauchyLinear(5, 2, **bad)
