# The published SE-ResNet-50: APA gates, cosine classifier, post-compensated softmax.
_base_ = "../_base_/imagenet_lt.py"
optim_wrapper = dict(type="AmpOptimWrapper", loss_scale="dynamic")
