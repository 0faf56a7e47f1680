# Faster R-CNN with softmax on a backbone that ../clothing_lt/se_r50_narrow_apa.py has
# pre-trained; its norms and all its stages train.
_base_ = ["./faster_rcnn_lite0_softmax_head.py", "../_base_/se_r50_narrow_apa.py"]
checkpoint = "work_dirs/se_r50_narrow_apa/epoch_30.pth"
init_cfg = dict(type="Pretrained", checkpoint=checkpoint, prefix="backbone.")
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(_delete_=True, norm_eval=False, init_cfg=init_cfg, **_base_.narrow),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
