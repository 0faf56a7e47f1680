# The published SE-ResNet-50 on V3Det's 13,204 classes, with the wrapped-Cauchy
# classifier. The loss is a softmax because that classifier's logits are all positive.
_base_ = [
    "mmdet::v3det/faster_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x.py",
    "../_base_/se_r50_apa.py",
]
predictor = dict(_delete_=True, type="WrappedCauchyLinear", scale=300.0)
bbox_head = dict(cls_predictor_cfg=predictor, loss_cls=dict(use_sigmoid=False))
model = dict(backbone={{_base_.se_r50_apa}}, roi_head=dict(bbox_head=bbox_head))
