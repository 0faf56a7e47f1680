# mask_rcnn_r50_apa.py with a cascade of three heads, each with its own APALoss.
_base_ = "./mask_rcnn_r50_apa.py"

bbox_head = [
    dict(
        type="APABBoxHead",
        in_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=1203,
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=target_stds),
        reg_class_agnostic=True,
        prior=6.18e-4,
        loss_cls=dict(
            type="APALoss",
            num_classes=1203,
            lam=0.0,
            learnable="shared",
            rare_threshold=0.0011,
        ),
        loss_bbox=dict(type="SmoothL1Loss", beta=1.0),
    )
    for target_stds in (
        [0.1, 0.1, 0.2, 0.2],
        [0.05, 0.05, 0.1, 0.1],
        [0.033, 0.033, 0.067, 0.067],
    )
]
rcnn = [
    dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=iou,
            neg_iou_thr=iou,
            min_pos_iou=iou,
            match_low_quality=False,
        ),
        sampler=dict(type="RandomSampler", num=512, pos_fraction=0.25),
        mask_size=28,
        pos_weight=-1,
        debug=False,
    )
    for iou in (0.5, 0.6, 0.7)
]
model = dict(
    type="CascadeRCNN",
    roi_head=dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=bbox_head,
    ),
    train_cfg=dict(rcnn=rcnn),
)
