# The models of the literature's tables, by the names that the tables use.
# Each is pinned to weights by timm's tag: what a name without one means changes with timm's version. They are those of
# OFA-KD (timm 0.6.5): on ImageNet, Swin-T 81.38, Mixer-B/16 76.62, ConvNeXt-T 82.05, ResNet50 80.38. A model that is
# not pretrained takes no weights from its tag; mean and std are those of the weights all the same.
_imagenet = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_half = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
_models = {
    "resnet18": dict(_imagenet, type="timm", name="resnet18.tv_in1k"),
    "resnet34": dict(_imagenet, type="timm", name="resnet34.tv_in1k"),
    "resnet50": dict(_imagenet, type="timm", name="resnet50.a1_in1k"),
    "mobilenetv1": dict(
        _imagenet, type="timm", name="mobilenetv1_100"
    ),  # a student only; its one set of weights differs
    "mobilenetv2": dict(_imagenet, type="timm", name="mobilenetv2_100.ra_in1k"),
    "convnext-t": dict(_imagenet, type="timm", name="convnext_tiny.fb_in1k"),
    "swin-t": dict(_imagenet, type="timm", name="swin_tiny_patch4_window7_224.ms_in1k"),
    "swin-n": dict(_imagenet, type="timm", name="swin_nano_patch4_window7_224", drop_path_rate=0.0),
    "swin-p": dict(_imagenet, type="timm", name="swin_pico_patch4_window7_224", drop_path_rate=0.0),
    "vit-s": dict(_half, type="timm", name="vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "deit-t": dict(_imagenet, type="timm", name="deit_tiny_patch16_224.fb_in1k"),
    "deit-t-distilled": dict(_imagenet, type="timm", name="deit_tiny_distilled_patch16_224.fb_in1k"),
    "mixer-b16": dict(_half, type="timm", name="mixer_b16_224.goog_in21k_ft_in1k"),
    "resmlp-s12": dict(_imagenet, type="timm", name="resmlp_12_224.fb_in1k"),
}
# swin-n and swin-p: drop path as in OFA-KD's arguments (imagenet/vit_mlp.yaml; CIFAR-100 in issue 19); timm's is 0.1.
_cnns = ("resnet18", "resnet34", "resnet50", "mobilenetv1", "mobilenetv2", "convnext-t")
