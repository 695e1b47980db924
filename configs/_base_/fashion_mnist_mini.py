# The embedded data set: 5,000 / 1,000 / 2,000 images of Fashion-MNIST, padded to 32x32, three equal channels.
_augment = [
    dict(type="RandomCrop", size=32, padding=2),
    dict(type="RandomHorizontalFlip"),
]
_pad = [dict(type="Pad", padding=2)]

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
