# Every long-tailed classifier: class counts from the training data, accuracy by groups
# of classes, and the published start: SGD, plain cross-entropy on a cosine classifier,
# post-compensated softmax in tests.
_base_ = "./classification.py"
custom_hooks = [dict(type="ClassFrequencyHook")]
model = dict(
    type="ImageClassifier",
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LongTailClsHead",
        predictor_cfg=dict(type="CosineLinear", scale=16.0),
        loss=dict(type="CrossEntropyLoss"),
        calibration="PostCompensation",
    ),
)
optim_wrapper = dict(optimizer=dict(type="SGD", momentum=0.9))
val_evaluator = dict(type="LongTailAccuracy")
test_evaluator = val_evaluator
