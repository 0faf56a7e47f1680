# The published recipe for CIFAR100-LT, ratio 100: SE-ResNet-32 with APA gates and ReLU.
_base_ = "./long_tail.py"
num_classes = 100
model = dict(
    backbone=dict(type="SEResNetCIFAR", depth=32, ratio=4),
    head=dict(num_classes=num_classes, in_channels=64),
    train_cfg=dict(augments=dict(type="Mixup", alpha=0.2)),
)

# ---- data
data_root = "data/cifar100/"
data_preprocessor = dict(
    num_classes=num_classes,
    mean=[129.304, 124.070, 112.434],
    std=[68.170, 65.392, 70.418],
    to_rgb=False,  # they are RGB
)
train_pipeline = [
    dict(type="RandomCrop", crop_size=32, padding=4),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="CIFARAutoAugment"),
    dict(type="Cutout", shape=16, prob=1.0),
    dict(type="PackInputs"),
]
test_pipeline = [dict(type="PackInputs")]
dataset = dict(type="CIFAR100", data_root=data_root)
train_dataloader = dict(
    batch_size=512,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="LongTailDataset",
        rule="exponential",
        ratio=100,
        dataset=dict(**dataset, split="train", pipeline=train_pipeline),
    ),
)
val_dataloader = dict(
    batch_size=512,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, split="test", pipeline=test_pipeline),
)
test_dataloader = val_dataloader

# ---- schedule
train_cfg = dict(by_epoch=True, max_epochs=500, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=0.2, weight_decay=1e-3))
# MMEngine's LinearLR reaches its end one epoch before `end`: three epochs of warm-up.
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=4),
    dict(type="CosineAnnealingLR", T_max=497, by_epoch=True, begin=3, end=500),
]
auto_scale_lr = dict(enable=False, base_batch_size=512)
