_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"
custom_imports = dict(imports=["apa_mmdet"], allow_failed_imports=False)
model = dict(type="APADetector", base_type={{_base_.model.type}})
