# Baseline: faster_rcnn_lite0_apa_head.py with mmdet's softmax classifier.
_base_ = "./faster_rcnn_lite0_apa_head.py"
loss_cls = dict(_delete_=True, type="CrossEntropyLoss", use_sigmoid=False)
model = dict(roi_head=dict(bbox_head=dict(prior=None, loss_cls=loss_cls)))
