# mask_rcnn_se_r50_apa.py with CBAM in place of squeeze and excitation.
_base_ = "./mask_rcnn_se_r50_apa.py"
model = dict(
    backbone=dict(
        plugins=[dict(cfg=dict(type="APACBAM"), position="after_conv3")],
        init_cfg=dict(checkpoint="pretrained/cbam_r50_apa_imagenet1k.pth"),
    )
)
