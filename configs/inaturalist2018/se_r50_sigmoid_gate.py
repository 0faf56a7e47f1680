# Control: se_r50_apa.py with plain squeeze and excitation.
_base_ = "./se_r50_apa.py"
se = dict(type="APASELayer", gate_cfg=dict(type="Sigmoid"))
model = dict(backbone=dict(plugins=[dict(cfg=se, position="after_conv3")]))
