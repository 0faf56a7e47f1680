# Control: cbam_r50_apa.py with ReLU and sigmoid gates.
_base_ = "./se_r50_relu.py"
cbam = dict(type="APACBAM", gate_cfg=dict(type="Sigmoid"))
model = dict(backbone=dict(plugins=[dict(cfg=cbam, position="after_conv3")]))
