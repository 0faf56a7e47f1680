# Control: mask_rcnn_r50_apa.py with lam fixed at 0, the Gumbel classifier (GOL).
_base_ = "./mask_rcnn_r50_apa.py"
model = dict(roi_head=dict(bbox_head=dict(loss_cls=dict(learnable=None))))
