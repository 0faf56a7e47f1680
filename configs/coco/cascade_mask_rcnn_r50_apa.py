_base_ = "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["apa_mmdet"], allow_failed_imports=False)
model = dict(type="APADetector", base_type={{_base_.model.type}})
