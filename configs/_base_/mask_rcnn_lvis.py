# Every Mask R-CNN on LVIS: mmdet's LVIS v1 config (repeat-factor sampling, multi-scale
# training), class frequencies for APALoss, no weight decay for lambda and kappa.
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
# The figures of LVISMetric, in a fraction of its time and memory.
val_evaluator = dict(type="LVISFastMetric")
test_evaluator = val_evaluator
# Evaluation on LVIS val takes too long to run after every epoch.
train_cfg = dict(val_interval=12)
