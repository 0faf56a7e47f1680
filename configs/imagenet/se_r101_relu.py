# Control: se_r101_apa.py with ReLU and sigmoid gates.
_base_ = "./se_r50_relu.py"
model = dict(backbone=dict(depth=101))
