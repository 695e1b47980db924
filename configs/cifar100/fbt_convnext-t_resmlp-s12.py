# The paper's own pair on CIFAR-100: ConvNeXt-T (88.42 %) -> ResMLP-S12, published 78.03 % (FBT, arXiv 2410.12342).
# Settings of OFA-KD (arXiv 2310.19444) for MLP students: 300 epochs, batch 8 x 128, AdamW 5e-4 -> 1e-5.
# The teacher is an ImageNet model fine-tuned on CIFAR-100: set model.teacher.checkpoint to your file.
#   torchrun --nproc_per_node 8 tools/train.py configs/cifar100/fbt_convnext-t_resmlp-s12.py --launcher pytorch \
#     --cfg-options model.teacher.checkpoint=teachers/convnext_tiny_cifar100.safetensors
_base_ = ["../_base_/fbt.py", "../_base_/cifar100_224.py"]

model = dict(
    teacher=dict(type="timm", name="convnext_tiny", num_classes=100, mean=_base_._mean, std=_base_._std),
    student=dict(type="timm", name="resmlp_12_224", num_classes=100, mean=_base_._mean, std=_base_._std),
)
