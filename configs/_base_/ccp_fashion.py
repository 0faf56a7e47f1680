# Clothing Co-Parsing (github.com/bearpaw/clothing-co-parsing) as a long-tailed
# detection set in LVIS format: 745 training and 253 validation photographs, 49 classes
# (14 frequent, 27 common, 8 rare), boxes and masks. For other data: docs/your_data.md.
_base_ = "mmdet::_base_/default_runtime.py"
custom_imports = dict(imports=["apa_mmdet"], allow_failed_imports=False)
custom_hooks = [dict(type="ClassFrequencyHook")]

# ---- data
data_root = "data/ccp_fashion/"
classes = """
accessories bag belt blazer blouse bodysuit boots bracelet cape cardigan coat dress
flats glasses gloves hair hat heels jacket jeans jumper leggings loafers necklace
pants pumps purse ring romper sandals scarf shirt shoes shorts skirt sneakers socks
stockings suit sunglasses sweater sweatshirt t-shirt tie tights top vest wallet watch
"""
metainfo = dict(classes=tuple(classes.split()))
num_classes = len(metainfo["classes"])
size = (384, 256)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
dataset = dict(type="LVISFormatDataset", data_root=data_root, metainfo=metainfo)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        type="ClassBalancedDataset",
        oversample_thr=0.03,  # 915 images an epoch
        dataset=dict(
            **dataset,
            ann_file="annotations/train.json",
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **dataset,
        ann_file="annotations/val.json",
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="LVISFastMetric", ann_file=data_root + "annotations/val.json", metric=["bbox"]
)
test_evaluator = val_evaluator

# ---- schedule
max_epochs = 12
train_cfg = dict(
    type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=max_epochs
)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.001, weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=100),
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
auto_scale_lr = dict(enable=False, base_batch_size=8)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
