# AGLU in the backbone, starting close to ReLU, and the APA classification head.
_base_ = "../_base_/mask_rcnn_lvis.py"
model = dict(
    backbone=dict(type="APAResNet", act_cfg=dict(type="AGLU", init="relu")),
    roi_head=dict(
        bbox_head=dict(
            type="APABBoxHead",
            prior=6.18e-4,  # with lam = 0, the published bias of -2
            loss_cls=dict(
                _delete_=True,
                type="APALoss",
                num_classes=1203,
                lam=0.0,
                learnable="shared",
                rare_threshold=0.0011,
            ),
        )
    ),
)
