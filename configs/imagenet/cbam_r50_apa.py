# The published CBAM-ResNet-50: se_r50_apa.py with CBAM instead of SE.
_base_ = "./se_r50_apa.py"
cbam = dict(cfg=dict(type="APACBAM"), position="after_conv3")
model = dict(backbone=dict(plugins=[cbam]))
