# Clothing dataset (github.com/alexeygrigorev/clothing-dataset, CC0) as a naturally
# long-tailed classification set: 17 classes, 950 to 15 training photographs of 64 x 64
# pixels. SE-ResNet-32 at 32 x 32, from scratch: half a minute of CPU time an epoch.
_base_ = "./long_tail.py"
num_classes = 17
model = dict(
    backbone=dict(
        type="SEResNetCIFAR", depth=32, ratio=4, gate_cfg=dict(type="Sigmoid")
    ),
    head=dict(
        num_classes=num_classes, in_channels=64, predictor_cfg=None, calibration=None
    ),
)

# ---- data
data_root = "data/clothing_lt64/"
data_preprocessor = dict(
    num_classes=num_classes,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
load = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(32, 32), interpolation="area"),
]
train_pipeline = [
    *load,
    dict(type="RandomCrop", crop_size=32, padding=4, pad_val=128),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]
test_pipeline = [*load, dict(type="PackInputs")]
dataset = dict(type="CustomDataset", data_root=data_root)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**dataset, data_prefix="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, data_prefix="test", pipeline=test_pipeline),
)
test_dataloader = val_dataloader

# ---- schedule
max_epochs = 30
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=5e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=69),
    dict(
        type="CosineAnnealingLR",
        T_max=max_epochs,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=64)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
