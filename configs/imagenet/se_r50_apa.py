# The published SE-ResNet-50, whose backbone the detectors start from.
_base_ = "../_base_/imagenet.py"
