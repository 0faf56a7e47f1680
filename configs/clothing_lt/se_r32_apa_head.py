# se_r32_sigmoid_head.py with an APA classifier: lambda and kappa shared and learnt.
_base_ = "./se_r32_sigmoid_head.py"
model = dict(head=dict(loss=dict(learnable="shared")))
