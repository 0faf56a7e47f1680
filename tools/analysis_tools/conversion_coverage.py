"""Convert a detector of every family, train it one step, and write a table of it.

    python tools/analysis_tools/conversion_coverage.py
    python tools/analysis_tools/conversion_coverage.py --configs yolox rtmdet

The models are whole and their weights random; images and annotations are made up.
Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import copy
import gc
import math
import platform
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import mmdet
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from apa_mmdet.conversion import ConversionReport, Site

_ROOT = Path(mmdet.__file__).parent / ".mim" / "configs"
_REPO = Path(__file__).parents[2]

# One config of each family, below mmdet's configs.
CONFIGS = """
atss/atss_r50_fpn_1x_coco
autoassign/autoassign_r50-caffe_fpn_1x_coco
carafe/faster-rcnn_r50_fpn-carafe_1x_coco
cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco
cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco
centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco
centernet/centernet-update_r50-caffe_fpn_ms-1x_coco
centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco
condinst/condinst_r50_fpn_ms-poly-90k_coco_instance
conditional_detr/conditional-detr_r50_8xb2-50e_coco
cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco
crowddet/crowddet-rcnn_refine_r50_fpn_8xb2-30e_crowdhuman
dab_detr/dab-detr_r50_8xb2-50e_coco
dcn/faster-rcnn_r50_fpn_dpool_1x_coco
dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco
ddod/ddod_r50_fpn_1x_coco
ddq/ddq-detr-4scale_r50_8xb2-12e_coco
deformable_detr/deformable-detr_r50_16xb2-50e_coco
deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco
detectors/detectors_htc-r50_1x_coco
detr/detr_r50_8xb2-150e_coco
dino/dino-4scale_r50_8xb2-12e_coco
double_heads/dh-faster-rcnn_r50_fpn_1x_coco
dyhead/atss_r50_fpn_dyhead_1x_coco
dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco
efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco
empirical_attention/faster-rcnn_r50-attn1111_fpn_1x_coco
fast_rcnn/fast-rcnn_r50_fpn_1x_coco
faster_rcnn/faster-rcnn_r50_fpn_1x_coco
faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco
fcos/fcos_r50-caffe_fpn_gn-head_1x_coco
foveabox/fovea_r50_fpn_gn-head-align_4xb4-2x_coco
fpg/faster-rcnn_r50_fpg_crop640-50e_coco
free_anchor/freeanchor_r50_fpn_1x_coco
fsaf/fsaf_r50_fpn_1x_coco
gcnet/mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco
gfl/gfl_r50_fpn_1x_coco
ghm/retinanet_r50_fpn_ghm-1x_coco
gn/mask-rcnn_r50_fpn_gn-all_2x_coco
gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco
grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco
groie/mask-rcnn_r50_fpn_groie_1x_coco
guided_anchoring/ga-retinanet_r50_fpn_1x_coco
guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco
hrnet/faster-rcnn_hrnetv2p-w18-1x_coco
htc/htc_r50_fpn_1x_coco
libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco
lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1
mask2former/mask2former_r50_8xb2-lsj-50e_coco
mask_rcnn/mask-rcnn_r50_fpn_1x_coco
maskformer/maskformer_r50_ms-16xb1-75e_coco
ms_rcnn/ms-rcnn_r50_fpn_1x_coco
nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco
nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco
paa/paa_r50_fpn_1x_coco
pafpn/faster-rcnn_r50_pafpn_1x_coco
panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco
pisa/faster-rcnn_r50_fpn_pisa_1x_coco
pisa/ssd300_pisa_coco
point_rend/point-rend_r50-caffe_fpn_ms-1x_coco
pvt/retinanet_pvt-t_fpn_1x_coco
pvt/retinanet_pvtv2-b0_fpn_1x_coco
queryinst/queryinst_r50_fpn_1x_coco
regnet/faster-rcnn_regnetx-3.2GF_fpn_1x_coco
reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco
res2net/faster-rcnn_res2net-101_fpn_2x_coco
resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco
retinanet/retinanet_r18_fpn_1x_coco
rpn/rpn_r50_fpn_1x_coco
rtmdet/rtmdet_tiny_8xb32-300e_coco
rtmdet/rtmdet-ins_tiny_8xb32-300e_coco
sabl/sabl-cascade-rcnn_r50_fpn_1x_coco
sabl/sabl-retinanet_r50_fpn_1x_coco
scnet/scnet_r50_fpn_1x_coco
seesaw_loss/cascade-mask-rcnn_r101_fpn_seesaw-loss_random-ms-2x_lvis-v1
solo/solo_r50_fpn_1x_coco
solo/decoupled-solo_r50_fpn_1x_coco
solov2/solov2_r50_fpn_1x_coco
sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco
ssd/ssd300_coco
ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco
swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco
tood/tood_r50_fpn_1x_coco
tridentnet/tridentnet_r50-caffe_1x_coco
v3det/fcos_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x
vfnet/vfnet_r50_fpn_1x_coco
yolact/yolact_r50_1xb8-55e_coco
yolo/yolov3_d53_8xb8-ms-608-273e_coco
yolo/yolov3_mobilenetv2_8xb24-320-300e_coco
yolof/yolof_r50-c5_8xb8-1x_coco
yolox/yolox_tiny_8xb8-300e_coco
""".split()

# What mmcv has no CPU kernel for is built and converted only.
BUILD_ONLY = {
    "carafe/faster-rcnn_r50_fpn-carafe_1x_coco": "CARAFE",
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco": "DeformRoIPool",
    "guided_anchoring/ga-retinanet_r50_fpn_1x_coco": "MaskedConv2d",
    "guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco": "MaskedConv2d",
}
# What a loss imports besides.
_PACKAGES = {"paa/paa_r50_fpn_1x_coco": ("sklearn", "scikit-learn")}

OUT_OF_REACH = {
    "boxinst": "its loss needs scikit-image",
    "convnext, timm_example, reid": "their backbones are those of mmpretrain",
    "glip, grounding_dino, mm_grounding_dino": "they load a text model from its hub",
    "lad, ld": "they load the checkpoint of a teacher",
    "misc/d2_*": "they wrap detectron2's detectors",
}

# Height and width of the images where 128 pixels are too few: a norm that trains needs
# more than one position on the last level, a deformable convolution three, DINO more
# positions than queries, and SSD's last layers shrink.
_SIZES = {
    "ddod/ddod_r50_fpn_1x_coco": 288,
    "efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco": 256,
    "fpg/faster-rcnn_r50_fpg_crop640-50e_coco": 256,
    "nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco": 256,
    "dino/dino-4scale_r50_8xb2-12e_coco": 224,
    "pisa/ssd300_pisa_coco": 300,
    "ssd/ssd300_coco": 300,
    "ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco": 320,
    "tood/tood_r50_fpn_1x_coco": 288,
}
# Pixels that an element of the semantic annotation stands for, where not 1.
_STRIDES = {
    "detectors/detectors_htc-r50_1x_coco": 8,
    "htc/htc_r50_fpn_1x_coco": 8,
    "scnet/scnet_r50_fpn_1x_coco": 8,
}
_HEADER = ("Config", "Sites", "Added", "Frozen", "Left", "Loss", "Result")
_INTRODUCTION = """# Coverage

One config of each family of detectors in MMDetection, converted by `APADetector` with
its default options. Made by `python tools/analysis_tools/conversion_coverage.py` with
{versions}, in {minutes} minutes of CPU time on one core. {trained} of {configs} were
trained for one step on a CPU, on two made-up images, from random weights.

- Sites: activations that became AGLU; of them shared: reached more than once by design,
  as by the levels of a pyramid.
- Added: parameters that the conversion added and that train, a λ and a κ for each site;
  Frozen: those added in frozen stages.
- Left: activations that stay as they are, by reason (below).
- Loss: the sum of the losses in the first step, before and after the conversion.
- One step: the losses are finite, every λ and κ that trains has a finite gradient, and
  no fixed activation runs that is not listed as left. With every site computing what it
  replaced, losses and gradients are bit for bit those of the unconverted detector.

In every config the keys, shapes and order of the unconverted detector's weights are
unchanged, as is which of them train; all keys that are new end in `lambda_param` or
`kappa_param`.
"""
_REGIONS = 32  # proposals that a loss of an RoI head or an RPN takes

_LEARNED = ("lambda_param", "kappa_param")
# What a function that was called inline computes, by the report's name of it.
_INLINE: dict[str, Callable] = {
    "ReLU": F.relu,
    "ReLU6": F.relu6,
    "LeakyReLU": F.leaky_relu,
    "SiLU": F.silu,
    "GELU": F.gelu,
    "Mish": F.mish,
}
_FIXED = {"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "silu", "gelu", "mish"}
_FIXED |= {"hardswish", "hardtanh", "hardtanh_", "elu", "celu", "selu", "prelu"}


@dataclass
class Row:
    """What came of one config.

    Attributes:
        name: The config.
        report: What was converted and what was left.
        added: Parameters added that take a gradient.
        frozen: Parameters added that belong to frozen stages.
        losses: The sum of the losses, unconverted and converted; None without a step.
        remarks: What else there is to say.
        failures: What went wrong.
        seconds: The CPU time it took.
    """

    name: str
    report: ConversionReport | None = None
    added: int = 0
    frozen: int = 0
    losses: tuple[float, float] | None = None
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


# ------------------------------------------------------------------ models and batches
def load(name: str) -> Config:
    """Return a config, its model without pretrained weights and with fewer regions."""
    cfg = Config.fromfile(_ROOT / f"{name}.py")
    for part in _dicts(cfg.model):
        part.pop("pretrained", None)
        if "checkpoint" in (part.get("init_cfg") or {}):
            part.pop("init_cfg")
        if "use_torchvision" in part:  # the same operation, without that package
            part["use_torchvision"] = False
        if "num" in (part.get("sampler") or {}):
            part["sampler"]["num"] = _REGIONS
        if "max_per_img" in (part.get("rpn_proposal") or {}):
            part["rpn_proposal"]["max_per_img"] = _REGIONS
    cfg.model.data_preprocessor.pop("batch_augments", None)  # they enlarge the images
    return cfg


def _dicts(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for part in node:
            yield from _dicts(part)


def batch(name: str, cfg: Config) -> dict:
    """Return two images with boxes of several sizes, and what else the model asks for.

    All objects are of class 0, which every model has.
    """
    size, stride = _SIZES.get(name, 128), _STRIDES.get(name, 1)
    rng = np.random.default_rng(0)
    shares = [(5, 10, 30, 35), (35, 25, 90, 85), (2, 5, 98, 95), (50, 5, 75, 50)]
    boxes = torch.tensor(shares) * size / 100
    labels = torch.zeros(len(boxes), dtype=torch.long)
    has_masks = _loads(cfg, "with_mask")
    inputs, samples = [], []
    for _ in range(2):
        image = rng.integers(0, 256, (3, size, size), dtype=np.uint8)
        inputs.append(torch.from_numpy(image))
        truth = InstanceData(bboxes=boxes.clone(), labels=labels.clone())
        if has_masks:
            masks = np.zeros((len(boxes), size, size), dtype=np.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
                mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) > 0.3
            truth.masks = BitmapMasks(masks, size, size)
        moved = boxes.repeat(8, 1) + torch.from_numpy(rng.normal(0, 4, (32, 4))).float()
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(size, size),
                ori_shape=(size, size),
                scale_factor=(1.0, 1.0),
                border=(0, size, 0, size),
            ),
            gt_instances=truth,
            ignored_instances=InstanceData(bboxes=boxes[:0], labels=labels[:0]),
            proposals=InstanceData(
                bboxes=moved.clamp(0, size), scores=torch.full((32,), 0.5)
            ),
        )
        if _loads(cfg, "with_seg"):
            classes = rng.integers(0, 53, (1, size // stride, size // stride))
            sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(classes))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def _loads(cfg: Config, what: str) -> bool:
    """Tell whether training loads these annotations."""
    return any(
        part.get(what, part.get("type") == "LoadPanopticAnnotations")
        for part in _dicts(cfg.train_dataloader.dataset)
    )


def settle(model: nn.Module, data: dict) -> None:
    """Give a model with random weights sound statistics and gradients everywhere.

    What is initialised to zero (the last norm of a residual branch, the last layer of a
    box branch) lets no gradient pass. Without the statistics of its input, a network
    whose norms are frozen multiplies its features from block to block.
    """
    for module in model.modules():
        if type(module).__name__ == "TridentConv":  # mmdet leaves it uninitialised
            nn.init.kaiming_normal_(module.weight)
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and not parameter.any():
            if parameter.dim() == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=0.01)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    settings = [(norm.momentum, norm.eps) for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum, norm.eps = 1.0, norm.eps or 1e-5
    with torch.no_grad():
        model(**prepared(model, data), mode="loss")
    for norm, setting in zip(norms, settings):
        norm.momentum, norm.eps = setting


def prepared(model: nn.Module, data: dict) -> dict:
    """Return a batch as the model's preprocessor hands it on."""
    return model.data_preprocessor(copy.deepcopy(data), True)


def step(model: nn.Module, data: dict) -> float:
    """Run one training step up to the gradients; return the sum of the losses."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model.train()
    model.zero_grad(set_to_none=True)
    loss, _ = model.parse_losses(model(**prepared(model, data), mode="loss"))
    loss.backward()
    return float(loss)


@contextmanager
def quiet_mmdet() -> Iterator[None]:
    """Build from mmdet's registries, as in a run's first epoch, without its log."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("ERROR")
    hub = MessageHub.get_current_instance()
    for name in ("epoch", "iter"):
        hub.update_info(name, 0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield
    logger.setLevel(level)


# ----------------------------------------------------------------------------- checks
def cover(name: str) -> Row:
    """Convert a config's detector, train it one step, and compare."""
    start, row = time.process_time(), Row(name)
    with quiet_mmdet():
        try:
            _cover(row)
        except Exception as error:  # the table tells of it, and the rest goes on
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            row.failures.append(f"{type(error).__name__}: {error} ({place})")
    gc.collect()
    row.seconds = time.process_time() - start
    return row


def _cover(row: Row) -> None:
    cfg = load(row.name)
    torch.manual_seed(0)
    base = MODELS.build(copy.deepcopy(cfg.model))
    converted = {**cfg.model, "type": "APADetector", "base_type": cfg.model.type}
    model = MODELS.build(ConfigDict(converted))
    row.report = model.conversion_report
    _compare_parameters(row, base, model)

    module, package = _PACKAGES.get(row.name, ("", ""))
    if row.name in BUILD_ONLY:
        kernel = BUILD_ONLY[row.name]
        row.remarks.append(f"not trained: mmcv has no CPU kernel of {kernel}")
    elif module and find_spec(module) is None:
        row.remarks.append(f"not trained: its loss needs {package}")
    else:
        _train(row, base, model, batch(row.name, cfg))


def _compare_parameters(row: Row, base: nn.Module, model: nn.Module) -> None:
    before, after = base.state_dict(), model.state_dict()
    for key, value in before.items():
        if key not in after:
            row.failures.append(f"{key} is missing")
        elif after[key].shape != value.shape:
            row.failures.append(f"{key} has another shape")
    for key in after.keys() - before.keys():
        if not key.endswith(_LEARNED):
            row.failures.append(f"{key} is new")
    if list(before) != [key for key in after if key in before]:
        row.failures.append("the order of the keys has changed")

    trains = {key: p.requires_grad for key, p in base.named_parameters()}
    for key, parameter in model.named_parameters():
        if key not in trains:
            row.added += parameter.requires_grad * parameter.numel()
            row.frozen += (not parameter.requires_grad) * parameter.numel()
        elif trains[key] != parameter.requires_grad:
            row.failures.append(f"{key} has another requires_grad")


def _train(row: Row, base: nn.Module, model: nn.Module, data: dict) -> None:
    base.init_weights()
    settle(base, data)
    start = copy.deepcopy(base.state_dict())
    model.load_state_dict(start, strict=False)
    counted = "cls_num_pos_samples_per_level"  # DDOD counts from step to step
    counts = getattr(getattr(base, "bbox_head", None), counted, None)
    if counts is not None:
        setattr(model.bbox_head, counted, list(counts))
    loss_before = step(base, data)
    before = {key: p.grad for key, p in base.named_parameters()}

    with as_before(base, model, row.report):
        loss = step(model, data)
    if loss != loss_before:
        row.failures.append(f"rewired, the loss is {loss}, not {loss_before}")
    after = {key: p.grad for key, p in model.named_parameters()}
    row.failures += [f"rewired, {text}" for text in differences(before, after)[:5]]

    model.load_state_dict(start, strict=False)  # norms have gathered statistics
    with Overlooked(model, row.report) as overlooked:
        row.losses = (loss_before, step(model, data))
    row.failures += sorted(overlooked.found)
    if not all(map(math.isfinite, row.losses)):
        row.failures.append(f"the losses are {row.losses}")
    check_gradients(row, model, before)


def differences(before: dict, after: dict) -> list[str]:
    """Return in words which gradients are not bit for bit the same."""
    found = []
    for key, wanted in before.items():
        value = after[key]
        if wanted is None or value is None:
            if wanted is not value:
                found.append(f"{key} has a gradient in one of the models only")
        elif not torch.equal(value, wanted):
            apart = (value - wanted).abs().max() / wanted.abs().max()
            found.append(f"the gradient of {key} differs by {apart:.1g} of its largest")
    return found


def check_gradients(row: Row, model: nn.Module, before: dict) -> None:
    """Check the gradients of every site.

    Args:
        row: Gets the failures and remarks.
        model: The converted model, after a step.
        before: The gradients of the unconverted one, by key.
    """
    for site in row.report.sites:
        parameters = list(model.get_submodule(site.path).parameters())
        gradients = [parameter.grad for parameter in parameters]
        beside = _beside(site.path, before)
        if not any(parameter.requires_grad for parameter in parameters):
            if any(gradient is not None for gradient in gradients):
                row.failures.append(f"{site.path} is frozen and has a gradient")
        elif any(gradient is None for gradient in gradients):
            if all(gradient is None for gradient in beside):
                row.remarks.append(f"the config never runs the module of {site.path}")
            else:
                row.failures.append(f"{site.path} has no gradient")
        elif not all(gradient.isfinite().all() for gradient in gradients):
            row.failures.append(f"{site.path} has a gradient that is not finite")
        elif not any(gradient.any() for gradient in gradients):
            if any(gradient is not None and gradient.any() for gradient in beside):
                # Far from 0, where ReLU and its stand-in are straight, it underflows.
                row.remarks.append(f"{site.path} has a gradient of zero")


def _beside(path: str, gradients: dict) -> list[torch.Tensor | None]:
    """Return the gradients of the nearest weights around an activation."""
    while path:
        path = path.rpartition(".")[0]
        found = [g for key, g in gradients.items() if key.startswith(f"{path}.")]
        if found:
            return found
    return []


@contextmanager
def as_before(
    base: nn.Module, model: nn.Module, report: ConversionReport
) -> Iterator[None]:
    """Let every site compute what it replaced.

    Only where a call has been routed to the wrong site, or to none, or relied on its
    input being overwritten, does the model then differ from the unconverted one.
    """
    activations = []
    for site in report.sites:
        activation = model.get_submodule(site.path)
        activation.forward = _original(base, site, activation)
        activations.append(activation)
    yield
    for activation in activations:
        del activation.forward


def _original(base: nn.Module, site: Site, activation: nn.Module) -> Callable:
    kind, _, inline = site.was.partition(", ")
    if not inline:
        for path in (site.path, site.path.rpartition(".")[0]):
            try:
                original = copy.copy(base.get_submodule(path))
            except AttributeError:  # it has a site of its own for each call
                continue
            if not any(original.children()):
                original.inplace = False
                return original.forward
    if kind == "LeakyReLU":
        return partial(F.leaky_relu, negative_slope=activation.negative_slope)
    return _INLINE[kind]


class Overlooked(TorchFunctionMode):
    """Looks for fixed activations that run, yet are neither converted nor listed.

    Args:
        model: The converted model.
        report: Its report.

    Attributes:
        found: What was found, in words.
    """

    def __init__(self, model: nn.Module, report: ConversionReport) -> None:
        super().__init__()
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._left = {left.path for left in report.left}
        self.found: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call a function of torch, noting who called it."""
        if getattr(func, "__name__", "") in _FIXED:
            self._note(func.__name__)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            path = self._paths.get(id(frame.f_locals.get("self")))
            if path is not None:
                method = f"{path}.{frame.f_code.co_name}()"
                if not {path, method} & self._left:
                    self.found.add(f"{name} in {method} is neither converted nor left")
                return
            frame = frame.f_back


# -------------------------------------------------------------------------- the table
def line(row: Row) -> str:
    """Return what is printed of a row while the matrix runs."""
    text = f"{row.name}: "
    if row.report is not None:
        text += f"{len(row.report.sites)} sites, {len(row.report.left)} left, "
        text += f"{row.added + row.frozen} parameters, "
    text += f"{row.seconds:.1f} s"
    return "\n    ".join([text, *row.remarks, *(f"FAILED: {f}" for f in row.failures)])


def cells(row: Row, letters: dict[str, str]) -> list[str]:
    """Return a row of the table; the first five cells hold on any machine.

    Args:
        row: What came of a config.
        letters: The letter of each reason to leave an activation; new ones are added.
    """
    if row.report is None:
        return [row.name, "", "", "", "", "", "failed"]
    reasons = Counter(left.reason for left in row.report.left)
    for reason in reasons:
        letters.setdefault(reason, chr(ord("a") + len(letters)))
    left = sorted(f"{n} {letters[reason]}" for reason, n in reasons.items())
    shared = sum(bool(site.shared) for site in row.report.sites)
    result = "one step" if row.losses is not None else "converted"
    return [
        row.name,
        f"{len(row.report.sites)}" + (f", {shared} shared" if shared else ""),
        str(row.added),
        str(row.frozen or ""),
        ", ".join(left),
        "{:.4g} → {:.4g}".format(*row.losses) if row.losses is not None else "",
        "; ".join(["failed" if row.failures else result, *row.remarks]),
    ]


def page(rows: list[Row]) -> str:
    """Return the document."""
    letters: dict[str, str] = {}
    body = [f"| {' | '.join(cells(row, letters))} |" for row in rows]
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("mmdet", "mmcv", "mmengine", "torch")
    )
    trained = sum(row.losses is not None and not row.failures for row in rows)
    lines = [
        _INTRODUCTION.format(
            versions=f"Python {platform.python_version()}, {versions}",
            configs=len(rows),
            trained=trained,
            minutes=math.ceil(sum(row.seconds for row in rows) / 60),
        ),
        f"| {' | '.join(_HEADER)} |",
        f"|{' --- |' * len(_HEADER)}",
        *body,
        "",
        "Left:",
        "",
        *(f"- {letter}: {reason}" for reason, letter in letters.items()),
        "",
        "Not in the table, for want of something to be downloaded or installed:",
        "",
        *(f"- {names}: {reason}" for names, reason in OUT_OF_REACH.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the matrix and write the table; return 1 if a config failed."""
    args = parse_args()
    for part in args.configs:
        if not any(part in name for name in CONFIGS):
            raise SystemExit(f"--configs {part}: no name in CONFIGS contains it")
    wanted = args.configs or [""]
    rows = []
    for name in CONFIGS:
        if any(part in name for part in wanted):
            rows.append(cover(name))
            print(line(rows[-1]), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    failed = sum(bool(row.failures) for row in rows)
    print(
        f"{len(rows)} configs, {failed} failed, {sum(r.seconds for r in rows):.0f} s "
        f"of CPU time, {peak:.1f} GiB at most"
    )
    out = args.out or (_REPO / "docs" / "coverage.md" if not args.configs else None)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(page(rows), encoding="utf-8")
    return int(failed > 0)


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        metavar="NAME",
        default=[],
        help="only those whose name contains one of these",
    )
    parser.add_argument(
        "--out", help="document to write; docs/coverage.md if all configs run"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
