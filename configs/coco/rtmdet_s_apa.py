_base_ = "mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py"
custom_imports = dict(imports=["apa_mmdet"], allow_failed_imports=False)
model = dict(type="APADetector", base_type={{_base_.model.type}})
