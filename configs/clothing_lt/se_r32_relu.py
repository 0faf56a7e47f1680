# SE-ResNet-32 with ReLU, sigmoid gates and a softmax classifier.
_base_ = "../_base_/clothing_lt.py"
