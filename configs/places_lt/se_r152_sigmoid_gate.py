# Control: ReLU and plain squeeze and excitation, from the model that was trained so.
_base_ = "./se_r152_apa.py"
se = dict(type="APASELayer", gate_cfg=dict(type="Sigmoid"))
backbone = dict(
    act_cfg=dict(_delete_=True, type="ReLU", inplace=True),
    plugins=[dict(cfg=se, position="after_conv3")],
    init_cfg=dict(checkpoint="pretrained/se_r152_imagenet1k.pth"),
)
model = dict(backbone=backbone)
custom_hooks = [dict(type="ClassFrequencyHook")]
