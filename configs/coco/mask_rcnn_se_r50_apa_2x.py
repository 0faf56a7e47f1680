# The published SE-ResNet-50 on COCO. Its weights come from the authors,
# github.com/kostas1515/AGLU.
_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py"
custom_imports = dict(imports=["apa_mmdet"], allow_failed_imports=False)
model = dict(
    backbone=dict(
        type="APAResNet",
        act_cfg=dict(type="AGLU", init="uniform"),
        plugins=[dict(cfg=dict(type="APASELayer"), position="after_conv3")],
        init_cfg=dict(checkpoint="pretrained/se_r50_apa_imagenet1k.pth"),
    )
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
