# configs/lvis/mask_rcnn_r50_apa.py with other data, sizes and schedule: a narrow
# ResNet-18 that learns mini-LVIS from scratch in minutes on a CPU. Make the data with
# tools/dataset_converters/make_mini_lvis.py.
_base_ = "../lvis/mask_rcnn_r50_apa.py"

# ---- data
data_root = "data/mini_lvis/"
skins = ("red", "blue", "yellow", "striped", "dotted")
shapes = ("star", "heart", "moon", "fish", "tree", "house", "cat", "mushroom")
metainfo = dict(classes=tuple(f"{skin}_{shape}" for shape in shapes for skin in skins))
num_classes = len(metainfo["classes"])
size = (160, 160)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        oversample_thr=0.05,
        dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/lvis_v1_val.json")
test_evaluator = val_evaluator

# ---- sizes
width = 64
roi_extractor = dict(out_channels=width)
model = dict(
    backbone=dict(
        depth=18, base_channels=32, frozen_stages=-1, norm_eval=False, init_cfg=None
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=width),
    rpn_head=dict(
        in_channels=width, feat_channels=width, anchor_generator=dict(scales=[4])
    ),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        mask_roi_extractor=roi_extractor,
        bbox_head=dict(
            in_channels=width,
            fc_out_channels=256,
            num_classes=num_classes,
            # No negatives are dropped: these classes share colours and shapes, and the
            # 15 that a threshold of 0.0175 left without negatives outscored all others
            # wherever the colour matched.
            loss_cls=dict(num_classes=num_classes, rare_threshold=None),
        ),
        mask_head=dict(
            num_convs=2,
            in_channels=width,
            conv_out_channels=width,
            num_classes=num_classes,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200), rcnn=dict(max_per_img=100)),
)

# ---- schedule
max_epochs = 5
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=0.002, weight_decay=0.01)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=40),
    dict(
        type="CosineAnnealingLR",
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min_ratio=0.01,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
