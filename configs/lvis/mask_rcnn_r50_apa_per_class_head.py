# Ablation: mask_rcnn_r50_apa.py with one lam and kappa for each class.
_base_ = "./mask_rcnn_r50_apa.py"
model = dict(roi_head=dict(bbox_head=dict(loss_cls=dict(learnable="class"))))
