# Pre-trains the backbone of ../real/faster_rcnn_se_r50_narrow_apa.py, at 64 x 64.
_base_ = ["./se_r32_relu.py", "../_base_/se_r50_narrow_apa.py"]
model = dict(backbone=dict(_delete_=True, **_base_.narrow), head=dict(in_channels=512))
steps = _base_.train_pipeline
crop = dict(type="RandomCrop", crop_size=64, padding=8, pad_val=128)
train_dataloader = dict(dataset=dict(pipeline=[steps[0], crop, *steps[3:]]))
val_dataloader = dict(dataset=dict(pipeline=[steps[0], steps[-1]]))
test_dataloader = val_dataloader
optimizer = dict(_delete_=True, type="AdamW", lr=0.002, weight_decay=0.05)
optim_wrapper = dict(optimizer=optimizer)
