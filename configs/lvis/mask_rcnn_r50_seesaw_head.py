# Control: mask_rcnn_r50_apa.py with the Seesaw loss and its normalised classifier.
_base_ = "./mask_rcnn_r50_apa.py"
loss_cls = dict(_delete_=True, type="SeesawLoss", p=0.8, q=2.0, num_classes=1203)
cls_predictor_cfg = dict(type="NormedLinear", tempearture=20)
bbox_head = dict(prior=None, loss_cls=loss_cls, cls_predictor_cfg=cls_predictor_cfg)
model = dict(roi_head=dict(bbox_head=bbox_head))
