"""One config of each detector family in MMDetection, and what its training needs."""

from __future__ import annotations

# Names below mmdet's configs, without ".py".
CONFIGS = """
atss/atss_r50_fpn_1x_coco autoassign/autoassign_r50-caffe_fpn_1x_coco
carafe/faster-rcnn_r50_fpn-carafe_1x_coco cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco
cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco
centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco
centernet/centernet-update_r50-caffe_fpn_ms-1x_coco
centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco
condinst/condinst_r50_fpn_ms-poly-90k_coco_instance
conditional_detr/conditional-detr_r50_8xb2-50e_coco
cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco
crowddet/crowddet-rcnn_refine_r50_fpn_8xb2-30e_crowdhuman
dab_detr/dab-detr_r50_8xb2-50e_coco dcn/faster-rcnn_r50_fpn_dpool_1x_coco
dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco ddod/ddod_r50_fpn_1x_coco
ddq/ddq-detr-4scale_r50_8xb2-12e_coco deformable_detr/deformable-detr_r50_16xb2-50e_coco
deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco
detectors/detectors_htc-r50_1x_coco detr/detr_r50_8xb2-150e_coco
dino/dino-4scale_r50_8xb2-12e_coco double_heads/dh-faster-rcnn_r50_fpn_1x_coco
dyhead/atss_r50_fpn_dyhead_1x_coco dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco
efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco
empirical_attention/faster-rcnn_r50-attn1111_fpn_1x_coco
fast_rcnn/fast-rcnn_r50_fpn_1x_coco faster_rcnn/faster-rcnn_r50_fpn_1x_coco
faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco fcos/fcos_r50-caffe_fpn_gn-head_1x_coco
foveabox/fovea_r50_fpn_gn-head-align_4xb4-2x_coco
fpg/faster-rcnn_r50_fpg_crop640-50e_coco free_anchor/freeanchor_r50_fpn_1x_coco
fsaf/fsaf_r50_fpn_1x_coco gcnet/mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco
gfl/gfl_r50_fpn_1x_coco ghm/retinanet_r50_fpn_ghm-1x_coco
gn/mask-rcnn_r50_fpn_gn-all_2x_coco gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco
grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco groie/mask-rcnn_r50_fpn_groie_1x_coco
guided_anchoring/ga-retinanet_r50_fpn_1x_coco
guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco hrnet/faster-rcnn_hrnetv2p-w18-1x_coco
htc/htc_r50_fpn_1x_coco libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco
lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1
mask2former/mask2former_r50_8xb2-lsj-50e_coco mask_rcnn/mask-rcnn_r50_fpn_1x_coco
maskformer/maskformer_r50_ms-16xb1-75e_coco ms_rcnn/ms-rcnn_r50_fpn_1x_coco
nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco
nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco paa/paa_r50_fpn_1x_coco
pafpn/faster-rcnn_r50_pafpn_1x_coco panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco
pisa/faster-rcnn_r50_fpn_pisa_1x_coco pisa/ssd300_pisa_coco
point_rend/point-rend_r50-caffe_fpn_ms-1x_coco pvt/retinanet_pvt-t_fpn_1x_coco
pvt/retinanet_pvtv2-b0_fpn_1x_coco queryinst/queryinst_r50_fpn_1x_coco
regnet/faster-rcnn_regnetx-3.2GF_fpn_1x_coco
reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco
res2net/faster-rcnn_res2net-101_fpn_2x_coco
resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco
retinanet/retinanet_r18_fpn_1x_coco rpn/rpn_r50_fpn_1x_coco
rtmdet/rtmdet_tiny_8xb32-300e_coco rtmdet/rtmdet-ins_tiny_8xb32-300e_coco
sabl/sabl-cascade-rcnn_r50_fpn_1x_coco sabl/sabl-retinanet_r50_fpn_1x_coco
scnet/scnet_r50_fpn_1x_coco
seesaw_loss/cascade-mask-rcnn_r101_fpn_seesaw-loss_random-ms-2x_lvis-v1
solo/solo_r50_fpn_1x_coco solo/decoupled-solo_r50_fpn_1x_coco
solov2/solov2_r50_fpn_1x_coco sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco ssd/ssd300_coco
ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco
tood/tood_r50_fpn_1x_coco tridentnet/tridentnet_r50-caffe_1x_coco
v3det/fcos_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x vfnet/vfnet_r50_fpn_1x_coco
yolact/yolact_r50_1xb8-55e_coco yolo/yolov3_d53_8xb8-ms-608-273e_coco
yolo/yolov3_mobilenetv2_8xb24-320-300e_coco yolof/yolof_r50-c5_8xb8-1x_coco
yolox/yolox_tiny_8xb8-300e_coco
""".split()

# Families outside the list, and why.
LEFT_OUT = {
    "boxinst": "its loss needs scikit-image",
    "convnext, timm_example, reid": "their backbones are those of mmpretrain",
    "glip, grounding_dino, mm_grounding_dino": "they load a text model from its hub",
    "lad, ld": "they load the checkpoint of a teacher",
    "misc/d2_*": "they wrap detectron2's detectors",
}
# Operations for which mmcv has no CPU kernel.
GPU_ONLY = {
    "carafe/faster-rcnn_r50_fpn-carafe_1x_coco": "CARAFE",
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco": "DeformRoIPool",
    "guided_anchoring/ga-retinanet_r50_fpn_1x_coco": "MaskedConv2d",
    "guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco": "MaskedConv2d",
}
# Packages that a loss imports: module and distribution.
PACKAGES = {"paa/paa_r50_fpn_1x_coco": ("sklearn", "scikit-learn")}

# Height and width in pixels where 128 are too few: a norm that trains needs more than
# one position on the last level, a deformable convolution three, DINO more positions
# than queries, and SSD's last layers shrink.
IMAGE_SIZES = {
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
# Image pixels per element of the semantic annotation, where not 1.
SEMANTIC_STRIDES = {
    "detectors/detectors_htc-r50_1x_coco": 8,
    "htc/htc_r50_fpn_1x_coco": 8,
    "scnet/scnet_r50_fpn_1x_coco": 8,
}
