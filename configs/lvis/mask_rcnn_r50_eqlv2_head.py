# Control: mask_rcnn_r50_apa.py with EQLv2 and its initialisation of the classifier.
_base_ = "./mask_rcnn_r50_apa.py"
loss_cls = dict(_delete_=True, type="EQLV2BoxLoss", num_classes=1203)
init_cfg = [
    dict(type="Normal", std=0.001, bias_prob=0.001, override=dict(name="fc_cls")),
    dict(type="Normal", std=0.001, override=dict(name="fc_reg")),
    dict(type="Xavier", distribution="uniform", override=dict(name="shared_fcs")),
]
bbox_head = dict(prior=None, loss_cls=loss_cls, init_cfg=init_cfg)
model = dict(roi_head=dict(bbox_head=bbox_head))
