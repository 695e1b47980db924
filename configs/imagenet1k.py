# The 15 pairs on ImageNet-1K, each with every method.
# Teachers are timm's pretrained models, which are downloaded.
#   python tools/train.py configs/imagenet1k.py --pair swin-t_resnet18 --method fbt
_base_ = ["_base_/imagenet_224.py", "_base_/recipes.py", "_base_/models.py", "_base_/methods.py"]

_students = {
    "resnet18": ("deit-t", "swin-t", "mixer-b16"),
    "mobilenetv2": ("deit-t", "swin-t", "mixer-b16"),
    "deit-t": ("resnet50", "convnext-t", "mixer-b16"),
    "swin-n": ("resnet50", "convnext-t", "mixer-b16"),
    "resmlp-s12": ("resnet50", "convnext-t", "swin-t"),
}
_figures = {
    "swin-t_resnet18": dict(
        **dict(scratch=69.75, kd=71.14, ofa=71.76, fbt=72.21, rsd=72.13),
        **dict(fbt_a=70.86, fbt_b=71.78, fbt_c=71.34, fbt_f=71.47, fbt_g=70.37),
    ),
    "swin-t_mobilenetv2": dict(scratch=68.87, ofa=72.32, fbt=72.54),
    "convnext-t_deit-t": dict(ofa=74.41, fbt=75.26),
    "resnet50_swin-n": dict(ofa=77.76, fbt=77.79),
    "convnext-t_swin-n": dict(rsd=77.70),
    "convnext-t_resmlp-s12": dict(rsd=78.41),
}
_sources = dict(rsd="RSD, arXiv 2507.21844")
_model = {name: dict(model, num_classes=1000) for name, model in _base_._models.items()}

pairs = {
    f"{teacher}_{student}": dict(
        _base_._recipes["imagenet_cnn" if student in _base_._cnns else "imagenet_token"],
        model=dict(teacher=dict(_model[teacher], pretrained=True), student=_model[student]),
        methods=dict(deit=dict(model=dict(student=_model["deit-t-distilled"]))),
        reference={
            method: dict(top1=value, source=_sources.get(method, "FBT, arXiv 2410.12342"))
            for method, value in _figures.get(f"{teacher}_{student}", {}).items()
        },
    )
    for student, teachers in _students.items()
    for teacher in teachers
}
