# The published SE-ResNet-50 on V3Det's 13,204 classes, with the wrapped-Cauchy
# classifier. Its loss is a softmax, because that classifier's logits are all positive.
# The backbone's weights come from the authors, github.com/kostas1515/AGLU.
_base_ = "mmdet::v3det/faster_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x.py"
custom_imports = dict(imports=["apa_mmdet"], allow_failed_imports=False)
predictor = dict(_delete_=True, type="WrappedCauchyLinear", scale=300.0)
model = dict(
    backbone=dict(
        type="APAResNet",
        act_cfg=dict(type="AGLU", init="uniform"),
        plugins=[dict(cfg=dict(type="APASELayer"), position="after_conv3")],
        init_cfg=dict(checkpoint="pretrained/se_r50_apa_imagenet1k.pth"),
    ),
    roi_head=dict(
        bbox_head=dict(cls_predictor_cfg=predictor, loss_cls=dict(use_sigmoid=False))
    ),
)
