# CIFAR-100 at 224 pixels as OFA-KD (arXiv 2310.19444) trains attention and MLP students on it, on 8 GPUs.
# 1,000 of the 50,000 training images are held out to choose the epoch; the published runs choose on the test images.
_mean = (0.5071, 0.4865, 0.4409)
_std = (0.2673, 0.2564, 0.2762)
_augment = [
    dict(
        type="timm",
        input_size=224,
        is_training=True,
        scale=(0.08, 1.0),
        auto_augment="rand-m9-mstd0.5-inc1",
        color_jitter=0.4,
        re_prob=0.25,
        re_mode="pixel",
        interpolation="bicubic",
        mean=_mean,
        std=_std,
    )
]
_resize = [dict(type="Resize", size=(224, 224), interpolation="bicubic")]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    dataset=dict(type="CIFAR100", split="train", root="data", transforms=_augment),
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

data_preprocessor = dict(mixup_alpha=0.8, cutmix_alpha=1.0)
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=5)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
    constructor="MergedGroupConstructor",
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=300, T_max=280, eta_min=1e-5, convert_to_iter_based=True),
]
