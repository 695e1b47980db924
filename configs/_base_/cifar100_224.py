# CIFAR-100 at the models' own 224 pixels. 1,000 of the 50,000 training images are held out to choose the epoch; the
# published runs choose on the test images.
_mean = (0.5071, 0.4865, 0.4409)
_std = (0.2673, 0.2564, 0.2762)
_resize = [dict(type="Resize", size=(224, 224), interpolation="bicubic")]

train_dataloader = dict(
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    dataset=dict(type="CIFAR100", split="train", root="data"),
    sampler=dict(type="SeededSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    dataset=dict(type="CIFAR100", split="val", root="data", transforms=_resize),
    sampler=dict(type="SeededSampler", shuffle=False),
)
test_dataloader = dict(
    batch_size=128,
    num_workers=4,
    dataset=dict(type="CIFAR100", split="test", root="data", transforms=_resize),
    sampler=dict(type="SeededSampler", shuffle=False),
)
val_evaluator = dict(type="TopK", topk=(1, 5))
test_evaluator = dict(type="TopK", topk=(1, 5))
val_cfg = dict()
test_cfg = dict()
