# The study's MLP teacher, trained as the shipped ConvNeXt is, in bf16.
# It takes 0.27 s per step of 128 on one thread of a CPU with avx512_bf16, 25 minutes in all.
#   FASHION_MNIST=/usr/share/datasets/fashion-mnist python tools/train.py configs/teachers/mixer_fashion_mnist.py \
#     --work-dir teachers/fashion_mnist/mixer
_base_ = ["convnext_fashion_mnist.py", "../_base_/fashion_mnist_models.py"]

model = dict(student=_base_._mixer)
train_dataloader = dict(in_memory=True)
optim_wrapper = dict(precision="bf16")
publish = "teachers/fashion_mnist/mixer/student.safetensors"
