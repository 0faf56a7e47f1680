# se_r50_apa.py with AGLU, too, from the published start for classification.
_base_ = "./se_r50_apa.py"
start = dict(lam=(0.0, 1.0), kappa=(0.8, 1.2))
model = dict(backbone=dict(act_cfg=dict(_delete_=True, type="AGLU", init=start)))
