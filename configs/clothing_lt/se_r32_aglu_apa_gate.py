# se_r32_relu.py with AGLU and APA gates.
_base_ = "./se_r32_aglu.py"
model = dict(backbone=dict(gate_cfg=dict(type="APA")))
