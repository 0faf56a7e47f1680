# The backbone of the published SE-ResNet-50, with AGLU and APA gates. Its weights come
# from the authors, github.com/kostas1515/AGLU.
custom_imports = dict(imports=["apa_mmdet"], allow_failed_imports=False)
se_r50_apa = dict(
    type="APAResNet",
    act_cfg=dict(type="AGLU", init="uniform"),
    plugins=[dict(cfg=dict(type="APASELayer"), position="after_conv3")],
    init_cfg=dict(checkpoint="pretrained/se_r50_apa_imagenet1k.pth"),
)
