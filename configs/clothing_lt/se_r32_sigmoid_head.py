# se_r32_relu.py with a sigmoid for each class, which starts at 1 / 17.
_base_ = "./se_r32_relu.py"
model = dict(head=dict(loss=dict(_delete_=True, type="APALoss", lam=1.0), prior=1 / 17))
