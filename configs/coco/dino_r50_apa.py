_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"
custom_imports = dict(imports=["apa_mmdet"], allow_failed_imports=False)
model = dict(type="APADetector", base_type={{_base_.model.type}})
