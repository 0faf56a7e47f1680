# The published SE-ResNet-50 on COCO.
_base_ = ["mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py", "../_base_/se_r50_apa.py"]
model = dict(backbone={{_base_.se_r50_apa}})
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
