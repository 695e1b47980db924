# The models of the tables with 100 classes, as students and as teachers, which have their own file each.
_base_ = ["cifar100_224.py", "models.py"]

_model = {n: dict(m, num_classes=100, mean=_base_._mean, std=_base_._std) for n, m in _base_._models.items()}
_teacher = {name: dict(_model[name]) for name in ("swin-t", "vit-s", "mixer-b16", "convnext-t")}
for _name in ("vit-s", "mixer-b16"):  # far from CIFAR's: they keep what their weights were trained with
    _teacher[_name].update(_base_._half)
_teacher_file = {name: f"teachers/cifar100/{name}.safetensors" for name in _teacher}
