# Control: mask_rcnn_r50_apa.py with mmdet's softmax classifier and initialisation.
_base_ = "./mask_rcnn_r50_apa.py"
loss_cls = dict(_delete_=True, type="CrossEntropyLoss", use_sigmoid=False)
model = dict(roi_head=dict(bbox_head=dict(prior=None, loss_cls=loss_cls)))
