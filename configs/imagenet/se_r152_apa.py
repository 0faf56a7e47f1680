# The published SE-ResNet-152.
_base_ = "./se_r50_apa.py"
model = dict(backbone=dict(depth=152))
