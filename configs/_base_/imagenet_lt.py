# The published recipe for ImageNet-LT: SE-ResNet-50 with APA gates, from scratch on 4
# GPUs. The lists are those of Liu et al., CVPR 2019; the images are ImageNet-1K's.
_base_ = "./long_tail.py"
num_classes = 1000
model = dict(
    backbone=dict(
        type="APAResNet",
        depth=50,
        act_cfg=dict(type="ReLU", inplace=True),
        plugins=[dict(cfg=dict(type="APASELayer"), position="after_conv3")],
        zero_init_residual=False,
    ),
    head=dict(num_classes=num_classes, in_channels=2048),
    train_cfg=dict(augments=dict(type="Mixup", alpha=0.2)),
)

# ---- data
data_root = "data/imagenet/"
data_preprocessor = dict(
    num_classes=num_classes,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
# Pillow, because that is what torchvision's reference scripts resize with.
resize = dict(backend="pillow", interpolation="bilinear")
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=224, **resize),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="AutoAugment", policies="imagenet"),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=256, edge="short", **resize),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]
dataset = dict(type="SplitFileDataset", data_root=data_root)
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**dataset, ann_file="ImageNet_LT_train.txt", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, ann_file="ImageNet_LT_val.txt", pipeline=test_pipeline),
)
test_dataloader = dict(**val_dataloader)
test_dataloader["dataset"] = dict(
    **dataset, ann_file="ImageNet_LT_test.txt", pipeline=test_pipeline
)

# ---- schedule
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=0.2, weight_decay=1e-4))
param_scheduler = [
    dict(type="CosineAnnealingLR", T_max=200, by_epoch=True, begin=0, end=200)
]
auto_scale_lr = dict(enable=False, base_batch_size=256)
