# se_r32_apa.py with the Gumbel classifier of GOL instead of softmax.
_base_ = "./se_r32_apa.py"
model = dict(
    head=dict(loss=dict(_delete_=True, type="APALoss", lam=0.0), calibration=None)
)
