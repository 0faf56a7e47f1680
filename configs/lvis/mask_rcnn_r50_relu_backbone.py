# Control: mask_rcnn_r50_apa.py with ReLU in the backbone.
_base_ = "./mask_rcnn_r50_apa.py"
model = dict(backbone=dict(act_cfg=dict(_delete_=True, type="ReLU")))
