# Control: se_r32_apa.py with plain squeeze and excitation.
_base_ = "./se_r32_apa.py"
model = dict(backbone=dict(gate_cfg=dict(type="Sigmoid")))
