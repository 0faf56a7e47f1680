# Control: mask_rcnn_r50_apa.py with lam fixed at 1, the sigmoid classifier.
_base_ = "./mask_rcnn_r50_apa.py"
model = dict(roi_head=dict(bbox_head=dict(loss_cls=dict(lam=1.0, learnable=None))))
