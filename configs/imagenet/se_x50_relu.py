# Control: se_x50_apa.py with ReLU and sigmoid gates.
_base_ = "./se_r50_relu.py"
model = dict(backbone=dict(type="APAResNeXt", groups=32, base_width=4))
