# The published SE-ResNeXt-50, 32x4d.
_base_ = "./se_r50_apa.py"
model = dict(backbone=dict(type="APAResNeXt", groups=32, base_width=4))
