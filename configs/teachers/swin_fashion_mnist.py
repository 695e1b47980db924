# The study's attention teacher, trained as the shipped ConvNeXt is.
#   FASHION_MNIST=/usr/share/dataset-fashion-mnist python tools/train.py configs/teachers/swin_fashion_mnist.py
_base_ = ["convnext_fashion_mnist.py", "../_base_/fashion_mnist_models.py"]

model = dict(student=_base_._swin)
publish = "teachers/fashion_mnist/swin/student.safetensors"
