# What every Mask R-CNN of this folder shares: mmdet's LVIS v1 config (repeat-factor
# sampling, multi-scale training), plus the treatment that lambda and kappa need.
_base_ = "mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py"

custom_imports = dict(imports=["apa_mmdet"], allow_failed_imports=False)
custom_hooks = [dict(type="ClassFrequencyHook")]

optim_wrapper = dict(
    clip_grad=dict(max_norm=35, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            lambda_param=dict(decay_mult=0.0), kappa_param=dict(decay_mult=0.0)
        )
    ),
)
# LVISMetric's figures in a small part of its time and memory.
val_evaluator = dict(type="LVISFastMetric")
test_evaluator = val_evaluator
# LVIS val takes longer than an epoch's gain is worth knowing.
train_cfg = dict(val_interval=12)
