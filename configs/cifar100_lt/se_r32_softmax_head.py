# Control: se_r32_apa.py tested with plain softmax.
_base_ = "./se_r32_apa.py"
model = dict(head=dict(calibration=None))
