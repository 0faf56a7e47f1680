# The published SE-ResNet-152: AGLU, APA gates, learnt cosine classifier.
_base_ = "../_base_/places_lt.py"
