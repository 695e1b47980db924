# A student of this package, taught by a teacher of this package through its fusion and its loss, on embedded images.
#   fbt train PATH/TO/my-parts/configs/my_parts.py
# The teacher knows nothing until it is trained itself; README.md shows the two commands.
model = dict(
    type="Distiller",
    teacher=dict(type="my_parts_net", num_classes=10, width=16),
    student=dict(type="my_parts_net", num_classes=10, width=8),
    fusion=dict(type="MyPartsFusion", splice="auto"),
    edges=["teacher_to_student", "teacher_to_fusion", "fusion_to_student"],
    feature_loss=None,
    logit_loss=dict(type="MyPartsLoss", temperature=2.0, weight=0.1),
    task_loss=dict(type="MyPartsLoss"),
)

_pad = [dict(type="Pad", padding=2)]
_augment = [dict(type="RandomCrop", size=32, padding=2), dict(type="RandomHorizontalFlip")]

train_dataloader = dict(
    batch_size=64,
    dataset=dict(type="FashionMNISTMini", split="train", transforms=_augment),
    sampler=dict(type="SeededSampler", shuffle=True),
    drop_last=True,
)
val_dataloader = dict(
    batch_size=250,
    dataset=dict(type="FashionMNISTMini", split="val", transforms=_pad),
    sampler=dict(type="SeededSampler", shuffle=False),
)
test_dataloader = dict(
    batch_size=250,
    dataset=dict(type="FashionMNISTMini", split="test", transforms=_pad),
    sampler=dict(type="SeededSampler", shuffle=False),
)
val_evaluator = dict(type="TopK", topk=(1, 5))
test_evaluator = dict(type="TopK", topk=(1, 5))
val_cfg = dict()
test_cfg = dict()

_epochs = 1
train_cfg = dict(by_epoch=True, max_epochs=_epochs)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=_epochs, end=_epochs, convert_to_iter_based=True)]
