# The study's attention teacher, trained as the shipped ConvNeXt is, in bf16.
# It takes 0.29 s per step of 128 on one thread of a CPU with avx512_bf16, 26 minutes in all.
#   FASHION_MNIST=/usr/share/datasets/fashion-mnist python tools/train.py configs/teachers/swin_fashion_mnist.py \
#     --work-dir teachers/fashion_mnist/swin
_base_ = ["convnext_fashion_mnist.py", "../_base_/fashion_mnist_models.py"]

model = dict(student=_base_._swin)
train_dataloader = dict(in_memory=True)
optim_wrapper = dict(precision="bf16")
publish = "teachers/fashion_mnist/swin/student.safetensors"
