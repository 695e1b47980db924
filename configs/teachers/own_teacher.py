# A teacher for your own images: ConvNeXt-T, fine-tuned; each folder is a class.
# It begins with ImageNet's weights and a new head.
#   IMAGES=~/photos fbt train teachers/own_teacher --cfg-options model.student.num_classes=10
# It needs a network for the weights; docs/quickstart.md shows how it then teaches.
_base_ = "../own_images.py"
model = dict(
    teacher=None,  # plain training
    fusion=None,
    edges=[],
    feature_loss=None,
    student=dict(name="convnext_tiny.fb_in1k", num_classes=10, pretrained=True, head="new"),
    task_loss=dict(type="CrossEntropyLoss", label_smoothing=0.1),
)
_labelled = dict(dataset=dict(labels="folders"))
train_dataloader, val_dataloader = _labelled, _labelled
val_evaluator = [dict(type="TopK")]
optim_wrapper = dict(optimizer=dict(lr=1e-4))
train_cfg = dict(max_epochs=10, val_interval=1)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=10, end=10, convert_to_iter_based=True)]
