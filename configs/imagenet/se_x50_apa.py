# The published SE-ResNet-50 as a ResNeXt, 32x4d.
_base_ = "./se_r50_apa.py"
model = dict(backbone=dict(type="APAResNeXt", groups=32, base_width=4))
