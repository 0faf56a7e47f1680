# Pre-trains the backbone of ../real/faster_rcnn_se_r50_narrow_apa.py, at 64 x 64.
_base_ = ["./se_r32_relu.py", "../_base_/se_r50_narrow_apa.py"]
backbone = dict(_delete_=True, **_base_.backbone)
model = dict(backbone=backbone, head=dict(in_channels=512))
image = dict(type="LoadImageFromFile")
crop = dict(type="RandomCrop", crop_size=64, padding=8, pad_val=128)
pipeline = [image, crop, _base_.train_pipeline[3], dict(type="PackInputs")]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=[image, dict(type="PackInputs")]))
test_dataloader = val_dataloader
optimizer = dict(_delete_=True, type="AdamW", lr=0.002, weight_decay=0.05)
optim_wrapper = dict(optimizer=optimizer)
