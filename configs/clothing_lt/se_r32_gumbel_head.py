# se_r32_sigmoid_head.py with the Gumbel classifier of GOL.
_base_ = "./se_r32_sigmoid_head.py"
model = dict(head=dict(loss=dict(lam=0.0)))
