# se_r32_apa.py with an APA classifier: lambda and kappa shared and learnt.
_base_ = "./se_r32_apa.py"
model = dict(
    head=dict(
        loss=dict(_delete_=True, type="APALoss", lam=1.0, learnable="shared"),
        calibration=None,
    )
)
