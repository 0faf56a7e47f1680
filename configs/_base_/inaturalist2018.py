# The published recipe for iNaturalist 2018: SE-ResNet-50 with APA gates, from scratch
# on 4 GPUs. Its own JSON files serve as they are, as do the lists made of them.
_base_ = "./imagenet_lt.py"
num_classes = 8142
model = dict(
    head=dict(
        num_classes=num_classes,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
        calibration=None,
    ),
    # One of the two for each batch, as in torchvision's reference scripts.
    train_cfg=dict(
        augments=[dict(type="Mixup", alpha=0.2), dict(type="CutMix", alpha=1.0)]
    ),
)

# ---- data
data_root = "data/inaturalist2018/"
data_preprocessor = dict(num_classes=num_classes)
resize = dict(backend="pillow", interpolation="bilinear")
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=192, **resize),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    # With torchvision's default magnitude; the published one is not known.
    dict(type="NumpyToPIL", to_rgb=True),
    dict(type="torchvision/RandAugment"),
    dict(type="PILToNumpy", to_bgr=True),
    dict(
        type="RandomErasing",
        erase_prob=0.1,
        mode="const",
        min_area_ratio=0.02,
        max_area_ratio=0.33,
        fill_color=[103.53, 116.28, 123.675],
    ),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=232, edge="short", **resize),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]
dataset = dict(data_root=data_root)
train_dataloader = dict(
    batch_size=256,
    sampler=dict(_delete_=True, type="RepeatAugSampler", num_repeats=4),
    dataset=dict(**dataset, ann_file="train2018.json", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=256,
    dataset=dict(**dataset, ann_file="val2018.json", pipeline=test_pipeline),
)
test_dataloader = val_dataloader

# ---- schedule
train_cfg = dict(max_epochs=500)
optim_wrapper = dict(optimizer=dict(lr=0.5), paramwise_cfg=dict(norm_decay_mult=0.0))
# MMEngine's LinearLR reaches its end one epoch before `end`: five epochs of warm-up.
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=6),
    dict(type="CosineAnnealingLR", T_max=495, by_epoch=True, begin=5, end=500),
]
auto_scale_lr = dict(enable=False, base_batch_size=1024)
