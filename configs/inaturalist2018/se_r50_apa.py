# The published SE-ResNet-50: APA gates, cosine classifier.
_base_ = "../_base_/inaturalist2018.py"
