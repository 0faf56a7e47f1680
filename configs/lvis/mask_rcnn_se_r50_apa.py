# The published SE-ResNet-50 model: AGLU and APA gates in the backbone, the Gumbel
# classifier without negatives of rare classes, a cosine mask predictor, a 2x schedule.
# The backbone weights come from the authors, github.com/kostas1515/AGLU.
_base_ = "./mask_rcnn_r50_gumbel_head.py"
model = dict(
    backbone=dict(
        act_cfg=dict(init="uniform"),
        plugins=[dict(cfg=dict(type="APASELayer"), position="after_conv3")],
        init_cfg=dict(checkpoint="pretrained/se_r50_apa_imagenet1k.pth"),
    ),
    roi_head=dict(
        mask_head=dict(
            predictor_cfg=dict(type="CosineConv2d"),
            upsample_cfg=dict(
                type="carafe",
                scale_factor=2,
                up_kernel=5,
                up_group=1,
                encoder_kernel=3,
                encoder_dilation=1,
                compressed_channels=64,
            ),
        )
    ),
    test_cfg=dict(rcnn=dict(nms=dict(iou_threshold=0.3), mask_thr_binary=0.4)),
)
train_cfg = dict(max_epochs=24, val_interval=24)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=24, milestones=[16, 22]),
]
