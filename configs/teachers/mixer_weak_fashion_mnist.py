# The study's Mixer with a third of its training: as strong as the other teachers of configs/compare/sakd_vs_cakd.py.
#   FASHION_MNIST=/usr/share/dataset-fashion-mnist python tools/train.py \
#     configs/teachers/mixer_weak_fashion_mnist.py --work-dir teachers/fashion_mnist/mixer_weak
_base_ = "mixer_fashion_mnist.py"

train_cfg = dict(max_epochs=4)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=4, T_max=3, eta_min=1e-5, convert_to_iter_based=True),
]
publish = "teachers/fashion_mnist/mixer_weak/student.safetensors"
