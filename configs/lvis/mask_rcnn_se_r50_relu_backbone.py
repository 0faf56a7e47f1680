# Control: mask_rcnn_se_r50_apa.py with ReLU and plain SE (sigmoid gates) in the
# backbone. It starts from any ImageNet SE-ResNet-50 whose weights have these keys.
_base_ = "./mask_rcnn_se_r50_apa.py"
gate_cfg = dict(type="Sigmoid")
model = dict(
    backbone=dict(
        act_cfg=dict(_delete_=True, type="ReLU"),
        plugins=[
            dict(cfg=dict(type="APASELayer", gate_cfg=gate_cfg), position="after_conv3")
        ],
        init_cfg=dict(checkpoint="pretrained/se_r50_imagenet1k.pth"),
    )
)
