# faster_rcnn_lite0_apa_head.py with the backbone's 32 ReLU6 converted to AGLU.
_base_ = "./faster_rcnn_lite0_apa_head.py"
model = dict(type="APADetector", base_type={{_base_.model.type}}, parts=["backbone"])
