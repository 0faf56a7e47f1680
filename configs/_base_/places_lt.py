# The published recipe for Places-LT: of the ImageNet-1K model only the last stage and
# the classifier train, with the lambda and kappa of the stage drawn anew. The batch
# size of 256 is ours.
_base_ = "./imagenet_lt.py"
num_classes = 365
uniform = dict(lam=(0.0, 1.0), kappa=(0.0, 1.0))
se = dict(type="APASELayer", gate_cfg=dict(type="APA", init=uniform))
model = dict(
    backbone=dict(
        depth=152,
        act_cfg=dict(_delete_=True, type="AGLU", init=uniform),
        plugins=[dict(cfg=se, position="after_conv3")],
        frozen_stages=3,
        # The authors' file; one of configs/imagenet/ needs prefix="backbone.", too.
        init_cfg=dict(
            type="Pretrained",
            checkpoint="pretrained/se_r152_apa_imagenet1k.pth",
        ),
    ),
    head=dict(
        num_classes=num_classes,
        predictor_cfg=dict(scale=25.0, learnable=True),
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
    # One of the two for each batch, as in torchvision's reference scripts.
    train_cfg=dict(
        augments=[dict(type="Mixup", alpha=0.2), dict(type="CutMix", alpha=1.0)]
    ),
)
custom_hooks = [
    dict(type="ClassFrequencyHook"),
    dict(type="RedrawActivationsHook", modules="backbone.layer4"),
]

# ---- data
data_root = "data/places_lt/"
data_preprocessor = dict(num_classes=num_classes)
dataset = dict(data_root=data_root)
train_dataloader = dict(dataset=dict(**dataset, ann_file="Places_LT_train.txt"))
val_dataloader = dict(dataset=dict(**dataset, ann_file="Places_LT_val.txt"))
test_dataloader = dict(dataset=dict(**dataset, ann_file="Places_LT_test.txt"))

# ---- schedule
max_epochs = 40
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=5e-5))
param_scheduler = [
    dict(
        type="CosineAnnealingLR",
        T_max=max_epochs,
        by_epoch=True,
        begin=0,
        end=max_epochs,
    )
]
