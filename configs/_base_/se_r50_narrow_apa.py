# A quarter as wide as the published SE-ResNet-50, for pre-training on two CPU cores.
narrow = dict(
    type="APAResNet",
    depth=50,
    base_channels=16,
    act_cfg=dict(type="AGLU", init=dict(lam=(0.0, 1.0), kappa=(0.8, 1.2))),
    plugins=[dict(cfg=dict(type="APASELayer"), position="after_conv3")],
)
