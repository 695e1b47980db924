# The shipped ConvNeXt with a sixth of its training: a teacher that knows less.
# It is of the same family, for the study's question whether a teacher's strength decides if a fusion model pays
# (configs/fashion_mnist_reasons.py). Minutes.
#   FASHION_MNIST=/usr/share/datasets/fashion-mnist python tools/train.py \
#     configs/teachers/convnext_weak_fashion_mnist.py --work-dir teachers/fashion_mnist/convnext_weak
_base_ = "convnext_fashion_mnist.py"

train_dataloader = dict(in_memory=True)
optim_wrapper = dict(precision="bf16")
train_cfg = dict(max_epochs=2)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=2, T_max=1, eta_min=1e-5, convert_to_iter_based=True),
]
publish = "teachers/fashion_mnist/convnext_weak/student.safetensors"
