"""Models of timm and torchvision: their small ones, with small images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .model import LibraryModel, group


def _images() -> list[Tensor]:
    return [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]


def _objects() -> list[dict[str, Tensor]]:
    """Return two objects in each of these images."""
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[:, 8:40, 8:40] = 1
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [4.0, 12.0, 44.0, 44.0]])
    keypoints = torch.full((2, 17, 3), 20.0)
    labels = torch.tensor([1, 1])
    each = dict(boxes=boxes, labels=labels, masks=masks, keypoints=keypoints)
    return [each, each]


# ------------------------------------------------------------------------------- timm
_CLASSES = dict(num_classes=8)
_X = dict(x=(2, 3, 64, 64))


def _timm(names: str, inputs: Mapping = _X, **options: Any) -> list[LibraryModel]:
    return group("timm", names, {**_CLASSES, **options}, inputs)


TIMM = [
    *_timm(
        "resnet18 seresnet18 ecaresnet26t gcresnext26ts resnest14d skresnet18 "
        "res2net50_14w_8s regnetx_002 regnety_002 rexnet_100 vgg11_bn densenet121 "
        "dla34 hrnet_w18_small xception41 selecsls42 cspresnet50 ese_vovnet19b_dw "
        "nf_resnet26 eca_nfnet_l0 repvgg_a0 mobileone_s0 mobilenetv2_050 "
        "mobilenetv3_small_050 mobilenetv4_conv_small efficientnet_b0 "
        "tf_efficientnetv2_b0 mnasnet_small ghostnet_050 lcnet_035 tinynet_e "
        "convnext_atto convnextv2_atto inception_next_atto poolformer_s12 "
        "caformer_s18 edgenext_xx_small mobilevit_xxs mobilevitv2_050 fastvit_t8 "
        "efficientvit_b0 starnet_s1 mambaout_femto pvt_v2_b0 focalnet_tiny_srf "
        "davit_tiny lambda_resnet26t tresnet_m dm_nfnet_f0 hgnet_tiny repvit_m0_9 "
        "swiftformer_xs shvit_s1"
    ),
    *_timm(
        "vit_tiny_patch16_224 deit_tiny_patch16_224 eva02_tiny_patch14_224 "
        "cait_xxs24_224 xcit_nano_12_p16_224 swin_tiny_patch4_window7_224 "
        "mixer_s32_224 resmlp_12_224 gmlp_ti16_224 pit_ti_224 convit_tiny "
        "twins_svt_small visformer_tiny coat_lite_tiny nest_tiny "
        "coatnet_nano_rw_224 hiera_tiny_224 volo_d1_224 maxvit_rmlp_pico_rw_256 "
        "sequencer2d_s",
        img_size=64,
    ),
    *_timm("levit_128s", dict(x=(2, 3, 224, 224))),
]

# ------------------------------------------------------------------------ torchvision


def _torchvision(
    names: str, inputs: Mapping = _X, **options: Any
) -> list[LibraryModel]:
    options = {"weights": None, **options}
    return group("torchvision", names, options, inputs)


def _detectors(names: str, **options: Any) -> list[LibraryModel]:
    options = dict(weights=None, weights_backbone=None, num_classes=2, **options)
    return group(
        "torchvision", names, options, dict(images=_images), dict(targets=_objects)
    )


_SMALL = dict(min_size=64, max_size=64)

TORCHVISION = [
    *_torchvision(
        "alexnet vgg11_bn resnet18 resnext50_32x4d squeezenet1_1 densenet121 "
        "shufflenet_v2_x0_5 mobilenet_v2 mobilenet_v3_small efficientnet_b0 "
        "efficientnet_v2_s mnasnet0_5 regnet_x_400mf regnet_y_400mf convnext_tiny "
        "swin_t swin_v2_t",
        num_classes=8,
    ),
    *_torchvision("googlenet", dict(x=(2, 3, 96, 96)), init_weights=False),
    *_torchvision("inception_v3", dict(x=(2, 3, 299, 299)), init_weights=False),
    *_torchvision("vit_b_16", image_size=64),
    *_torchvision("maxvit_t", dict(x=(2, 3, 224, 224)), input_size=(224, 224)),
    *_torchvision("r3d_18 swin3d_t", dict(x=(2, 3, 8, 64, 64))),
    *_torchvision("raft_small", dict(image1=(1, 3, 128, 128), image2=(1, 3, 128, 128))),
    *_torchvision(
        "fcn_resnet50 deeplabv3_mobilenet_v3_large",
        weights_backbone=None,
        num_classes=8,
    ),
    *_torchvision(
        "lraspp_mobilenet_v3_large",
        dict(input=_X["x"]),
        weights_backbone=None,
        num_classes=8,
    ),
    *_detectors("fcos_resnet50_fpn retinanet_resnet50_fpn", **_SMALL),
    *_detectors(
        "fasterrcnn_resnet50_fpn fasterrcnn_mobilenet_v3_large_320_fpn "
        "maskrcnn_resnet50_fpn keypointrcnn_resnet50_fpn",
        **_SMALL,
        box_detections_per_img=4,
        box_batch_size_per_image=16,
    ),
    *_detectors("ssdlite320_mobilenet_v3_large"),
]
