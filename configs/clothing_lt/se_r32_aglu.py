# se_r32_relu.py with AGLU, from the published start for classification.
_base_ = "./se_r32_relu.py"
start = dict(lam=(0.0, 1.0), kappa=(0.8, 1.2))
model = dict(backbone=dict(act_cfg=dict(type="AGLU", init=start)))
