# The models of the literature's tables, by the names that the tables use.
_models = {
    "resnet18": dict(type="timm", name="resnet18"),
    "resnet34": dict(type="timm", name="resnet34"),
    "resnet50": dict(type="timm", name="resnet50"),
    "mobilenetv1": dict(type="timm", name="mobilenetv1_100"),
    "mobilenetv2": dict(type="timm", name="mobilenetv2_100"),
    "convnext-t": dict(type="timm", name="convnext_tiny"),
    "swin-t": dict(type="timm", name="swin_tiny_patch4_window7_224"),
    "swin-n": dict(type="timm", name="swin_nano_patch4_window7_224"),
    "swin-p": dict(type="timm", name="swin_pico_patch4_window7_224"),
    "vit-s": dict(type="timm", name="vit_small_patch16_224"),
    "deit-t": dict(type="timm", name="deit_tiny_patch16_224"),
    "deit-t-distilled": dict(type="timm", name="deit_tiny_distilled_patch16_224"),
    "mixer-b16": dict(type="timm", name="mixer_b16_224"),
    "resmlp-s12": dict(type="timm", name="resmlp_12_224"),
}
_cnns = ("resnet18", "resnet34", "resnet50", "mobilenetv1", "mobilenetv2", "convnext-t")
