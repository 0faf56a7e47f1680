# The published SE-ResNet-101.
_base_ = "./se_r50_apa.py"
model = dict(backbone=dict(depth=101))
