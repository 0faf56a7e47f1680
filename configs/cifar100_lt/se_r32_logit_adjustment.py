# se_r32_apa.py tested with logit adjustment.
_base_ = "./se_r32_apa.py"
model = dict(head=dict(calibration="LogitAdjustment:tau=1"))
