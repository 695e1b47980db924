# The teachers on CIFAR-100: timm's ImageNet models, fine-tuned with a new head.
# They are downloaded. The head has 100 classes; the recipe is OFA-KD's for the model's kind at a tenth of the rate
# (published: a tenth to a twentieth). Like all recipes for 8 processes:
#   torchrun --nproc_per_node 8 tools/train.py configs/teachers/cifar100.py --pair swin-t --method finetune \
#     --launcher pytorch
# A run puts teachers/cifar100/NAME.safetensors, and its entry of the manifest beside it, where configs/cifar100.py
# looks for them.
_base_ = ["../_base_/cifar100_models.py", "../_base_/recipes.py"]

_top1 = {"swin-t": 89.26, "vit-s": 92.44, "mixer-b16": 87.62, "convnext-t": 88.42}
_recipe = {name: "cifar100_cnn" if name in _base_._cnns else "cifar100_token" for name in _top1}
_schedule = {recipe: _base_._recipes[recipe]["param_scheduler"] for recipe in ("cifar100_cnn", "cifar100_token")}
_tenth = {
    recipe: dict(
        optim_wrapper=dict(optimizer=dict(lr=rate)),
        ema=None,  # nobody says that teachers were averaged
        param_scheduler=[_schedule[recipe][0], dict(_schedule[recipe][1], eta_min=end)],
    )
    for recipe, rate, end in (("cifar100_cnn", 5e-3, 1e-4), ("cifar100_token", 5e-5, 1e-6))
}

model = dict(type="Distiller", task_loss=dict(type="CrossEntropyLoss", label_smoothing=0.1))
pairs = {
    name: dict(
        _base_._recipes[_recipe[name]],
        model=dict(student=dict(_base_._teacher[name], pretrained=True, head="new")),
        publish=_base_._teacher_file[name],
        methods=dict(finetune=_tenth[_recipe[name]]),
        reference=dict(finetune=dict(top1=top1, source="OFA-KD, arXiv 2310.19444")),
    )
    for name, top1 in _top1.items()
}
methods = dict(finetune=dict(about="an ImageNet model, fine-tuned"))
seeds = [0]
