# Control: se_r50_apa.py with ReLU, and plain squeeze and excitation (sigmoid gates).
_base_ = "./se_r50_apa.py"
se = dict(type="APASELayer", gate_cfg=dict(type="Sigmoid"))
model = dict(
    backbone=dict(
        act_cfg=dict(_delete_=True, type="ReLU"),
        plugins=[dict(cfg=se, position="after_conv3")],
    )
)
