# se_r32_apa.py with a sigmoid for each class instead of softmax.
_base_ = "./se_r32_apa.py"
model = dict(
    head=dict(loss=dict(_delete_=True, type="APALoss", lam=1.0), calibration=None)
)
