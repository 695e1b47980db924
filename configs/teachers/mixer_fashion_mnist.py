# The study's MLP teacher, trained as the shipped ConvNeXt is.
#   FASHION_MNIST=/usr/share/dataset-fashion-mnist python tools/train.py configs/teachers/mixer_fashion_mnist.py
_base_ = ["convnext_fashion_mnist.py", "../_base_/fashion_mnist_models.py"]

model = dict(student=_base_._mixer)
publish = "teachers/fashion_mnist/mixer/student.safetensors"
