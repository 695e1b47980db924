# The flagship: a ConvNeXt teaches a ResMLP through a fusion model. Runs anywhere.
# Both are small, and the images are embedded.
#   python tools/train.py configs/fbt_convnext_resmlp.py
_base_ = [
    "_base_/fbt.py",
    "_base_/fashion_mnist_mini.py",
    "_base_/convnext_fashion_mnist.py",
    "_base_/adamw_cosine.py",
]

model = dict(
    teacher=dict(**_base_._convnext, checkpoint="embedded:convnext_fashion_mnist"),
    student=dict(type="timm", name="resmlp_s4_patch4_32", num_classes=10),
)
optim_wrapper = dict(optimizer=dict(lr=1.4e-2))
teacher_cache = dict(views=4)  # the teacher's outputs, and the stage that the splice starts from, are computed once
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=2)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, T_max=19, end=20, eta_min=1e-5, convert_to_iter_based=True),
]
without_teacher = dict(  # for the closing table: the same student and training, no teacher
    top1=84.4,
    std=1.24,
    seeds=5,
    training="6c8f4773d1ed4bbf",
    command="python tools/compare.py configs/compare/flagship.py --methods scratch",
)
