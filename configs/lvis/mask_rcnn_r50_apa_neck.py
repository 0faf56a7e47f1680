# mask_rcnn_r50_apa.py with AGLU in the FPN too.
_base_ = "./mask_rcnn_r50_apa.py"
model = dict(neck=dict(act_cfg=dict(type="AGLU")))
