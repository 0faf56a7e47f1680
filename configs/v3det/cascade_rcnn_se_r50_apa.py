# faster_rcnn_se_r50_apa.py with a cascade of three heads.
_base_ = [
    "mmdet::v3det/cascade_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x.py",
    "../_base_/se_r50_apa.py",
]
bbox_head = [
    dict(
        type="Shared2FCBBoxHead",
        in_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=13204,
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=target_stds),
        reg_class_agnostic=True,
        cls_predictor_cfg=dict(type="WrappedCauchyLinear", scale=300.0),
        loss_cls=dict(
            type="CrossEntropyCustomLoss", num_classes=13204, use_sigmoid=False
        ),
        loss_bbox=dict(type="L1Loss"),
    )
    for target_stds in (
        [0.1, 0.1, 0.2, 0.2],
        [0.05, 0.05, 0.1, 0.1],
        [0.033, 0.033, 0.067, 0.067],
    )
]
model = dict(backbone={{_base_.se_r50_apa}}, roi_head=dict(bbox_head=bbox_head))
