# Baseline: faster_rcnn_lite0_apa_head.py with Seesaw and its normed classifier.
_base_ = "./faster_rcnn_lite0_apa_head.py"
num_classes = {{_base_.num_classes}}
loss_cls = dict(_delete_=True, type="SeesawLoss", p=0.8, q=2.0, num_classes=num_classes)
cls_predictor_cfg = dict(type="NormedLinear", tempearture=20)
bbox_head = dict(prior=None, loss_cls=loss_cls, cls_predictor_cfg=cls_predictor_cfg)
model = dict(roi_head=dict(bbox_head=bbox_head))
