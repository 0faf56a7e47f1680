# se_r50_apa_head.py with lambda and kappa of its own for each class.
_base_ = "./se_r50_apa_head.py"
model = dict(head=dict(loss=dict(learnable="class")))
