# ImageNet-1K as folders of JPEG files at 224 pixels. Its test labels are not public: as in the published runs, the
# epoch is chosen on the validation images, and the result is theirs (summary.json says so).
_center = [
    dict(type="Resize", size=256, interpolation="bicubic"),
    dict(type="CenterCrop", size=224),
]

train_dataloader = dict(
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    dataset=dict(type="ImageFolder", split="train", root="data/imagenet"),
    sampler=dict(type="SeededSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(type="ImageFolder", split="val", root="data/imagenet", transforms=_center),
    sampler=dict(type="SeededSampler", shuffle=False),
)
val_evaluator = dict(type="TopK", topk=(1, 5))
val_cfg = dict()
