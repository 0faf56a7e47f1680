# The published SE-ResNet-101 model: like SE-ResNet-50, but with a fixed temperature and
# a deconvolution in the mask head.
_base_ = "./mask_rcnn_se_r50_apa.py"
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint="pretrained/se_r101_apa_imagenet1k.pth")
    ),
    roi_head=dict(
        mask_head=dict(
            predictor_cfg=dict(temperature=20, learnable=False),
            upsample_cfg=dict(_delete_=True, type="deconv", scale_factor=2),
        )
    ),
)
