# Every classifier: MMPretrain's runtime, ImageNet's colours, top-1 accuracy. It is
# written out because MMEngine finds the bases of installed packages in OpenMMLab's only.
custom_imports = dict(
    imports=["apa_mmdet.classification"], allow_failed_imports=False
)
default_scope = "mmpretrain"
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=100),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
log_level = "INFO"
load_from = None
resume = False
val_cfg = dict()
test_cfg = dict()
