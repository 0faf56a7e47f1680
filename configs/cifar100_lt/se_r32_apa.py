# The published SE-ResNet-32: APA gates, cosine classifier, post-compensated softmax.
_base_ = "../_base_/cifar100_lt.py"
