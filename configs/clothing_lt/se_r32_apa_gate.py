# se_r32_relu.py with APA gates.
_base_ = "./se_r32_relu.py"
model = dict(backbone=dict(gate_cfg=dict(type="APA")))
