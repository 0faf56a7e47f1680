# The published recipe for ImageNet-1K, with the published SE-ResNet-50: AGLU in the
# backbone, APA gates in its attention, trained from scratch on 4 GPUs.
_base_ = "./classification.py"
model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="APAResNet",
        depth=50,
        act_cfg=dict(type="AGLU", init=dict(lam=(0.0, 1.0), kappa=(0.8, 1.2))),
        plugins=[dict(cfg=dict(type="APASELayer"), position="after_conv3")],
        zero_init_residual=False,
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=2048,
        # Also of the soft labels of mixup, which torch takes as they are.
        loss=dict(type="CrossEntropyLoss"),
    ),
    train_cfg=dict(augments=dict(type="Mixup", alpha=0.2)),
)

# ---- data
data_root = "data/imagenet/"
data_preprocessor = dict(
    num_classes=1000,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
# Pillow, because that is what torchvision's reference scripts resize with.
resize = dict(backend="pillow", interpolation="bilinear")
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=192, **resize),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="AutoAugment", policies="imagenet"),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=232, edge="short", **resize),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]
dataset = dict(type="ImageNet", data_root=data_root)
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**dataset, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, split="val", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator

# ---- schedule
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=0.256, momentum=0.875, weight_decay=6.103515625e-5)
)
# MMEngine's LinearLR reaches its end one epoch before `end`: three epochs of warm-up.
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=4),
    dict(type="CosineAnnealingLR", T_max=97, by_epoch=True, begin=3, end=100),
]
auto_scale_lr = dict(enable=False, base_batch_size=256)
