# The flagship: a small ConvNeXt teaches a small ResMLP through a fusion model, on embedded images, on any machine.
#   python tools/train.py configs/fbt_convnext_resmlp.py
_base_ = ["_base_/fbt.py", "_base_/fashion_mnist_mini.py", "_base_/adamw_cosine.py"]

model = dict(
    teacher=dict(
        type="timm",
        name="convnext_tiny",
        num_classes=10,
        input_size=64,
        stem_type="overlap_act",
        depths=(1, 2, 2, 1),
        dims=(24, 64, 128, 208),
        kernel_sizes=(5, 5, 3, 3),
        ls_init_value=0.1,
        checkpoint="embedded:convnext_fashion_mnist",
    ),
    student=dict(type="timm", name="resmlp_s4_patch4_32", num_classes=10),
)
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, T_max=11, end=12, eta_min=1e-5, convert_to_iter_based=True),
]
