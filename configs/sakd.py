# Three pairs of one architecture on ImageNet-1K, each with every method.
# The field's two of CNNs have mdistiller's recipe, one of transformers has OFA-KD's. The CNN teachers have
# torchvision's weights, as mdistiller's do (timm's tag tv_in1k); they are downloaded.
#   python tools/train.py configs/sakd.py --pair resnet34_resnet18 --method fbt
_base_ = ["_base_/imagenet_224.py", "_base_/recipes.py", "_base_/models.py", "_base_/methods.py"]

_kd = dict(task_loss=dict(weight=0.5), logit_loss=dict(weight=0.5))  # mdistiller's, on ImageNet
_pairs = {  # mdistiller: beta of DKD, and its results
    "resnet34_resnet18": ("resnet34.tv_in1k", "mdistiller", 0.5, dict(kd=71.03, dkd=71.70, dist=72.07)),
    "resnet50_mobilenetv1": ("resnet50.tv_in1k", "mdistiller", 2.0, dict(kd=70.50, dkd=72.05)),
    "vit-s_deit-t": ("vit_small_patch16_224.augreg_in21k_ft_in1k", "imagenet_token", 2.0, {}),
}
_model = {name: dict(model, num_classes=1000) for name, model in _base_._models.items()}
_source = "mdistiller's and DIST's tables (arXiv 2203.08679, 2205.10536)"

pairs = {
    pair: dict(
        _base_._recipes[recipe],
        model=dict(
            task_loss=dict(label_smoothing=0.0 if recipe == "mdistiller" else 0.1),
            teacher=dict(type="timm", name=teacher, num_classes=1000, pretrained=True),
            student=_model[pair.split("_")[1]],
        ),
        methods=dict(
            kd=dict(model=_kd if recipe == "mdistiller" else {}),
            dkd=dict(model=dict(logit_loss=dict(beta=beta))),
            deit=dict(model=dict(student=_model["deit-t-distilled"])),
        ),
        reference={method: dict(top1=value, source=_source) for method, value in figures.items()},
    )
    for pair, (teacher, recipe, beta, figures) in _pairs.items()
}
