# Every classifier: MMPretrain's runtime, no weight decay for lambda and kappa. It is
# written out because only OpenMMLab's MMEngine finds configs as mmpretrain::NAME.
custom_imports = dict(imports=["apa_mmdet.classification"], allow_failed_imports=False)
default_scope = "mmpretrain"
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=100),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
log_level = "INFO"
load_from = None
resume = False
optim_wrapper = dict(
    type="OptimWrapper",
    paramwise_cfg=dict(
        custom_keys=dict(
            lambda_param=dict(decay_mult=0.0), kappa_param=dict(decay_mult=0.0)
        )
    ),
)
val_cfg = dict()
test_cfg = dict()
