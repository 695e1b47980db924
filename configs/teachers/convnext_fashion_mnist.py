# The teacher "embedded:convnext_fashion_mnist": a small ConvNeXt, trained alone.
# On all of Fashion-MNIST's training images but the 1,000 of the embedded validation set. Needs the original files
# (docs/guides/data.md says whence).
#   FASHION_MNIST=/usr/share/datasets/fashion-mnist python tools/train.py configs/teachers/convnext_fashion_mnist.py
_base_ = ["../_base_/fashion_mnist_mini.py", "../_base_/convnext_fashion_mnist.py", "../_base_/adamw_cosine.py"]

model = dict(
    type="Distiller",
    student=dict(**_base_._convnext, mean=(0.2860,) * 3, std=(0.3530,) * 3),
    task_loss=dict(type="CrossEntropyLoss"),
)
train_dataloader = dict(
    batch_size=128,
    dataset=dict(type="FashionMNIST", split="train", root="{{$FASHION_MNIST:data}}", transforms=_base_._augment),
)
test_dataloader = dict(
    dataset=dict(type="FashionMNIST", split="test", root="{{$FASHION_MNIST:data}}", transforms=_base_._pad)
)
train_cfg = dict(by_epoch=True, max_epochs=12)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=12, T_max=11, eta_min=1e-5, convert_to_iter_based=True),
]
