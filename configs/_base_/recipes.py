# How the published comparisons train: OFA-KD's settings (arXiv 2310.19444) by data set and kind of student ("token":
# attention and MLP), and mdistiller's for pairs of one architecture. Each is laid over a config by its pairs.
# Batches are those of one process of 8. A recipe's rate is for its total batch (base_batch_size); with another number
# of processes, batch_size or accumulative_counts it is scaled in proportion, and eta_min with it.
# On CIFAR-100 tokens have what OFA-KD's authors posted as their arguments (Hao840/OFAKD, issues 14 and 19): averaged
# weights and a minimum of 1e-6; an older reading has 1e-5 and no average. Nobody is known to have reproduced the
# published baselines exactly with them (docs/reference/methods.md).
optim_wrapper = dict(constructor="MergedGroupConstructor")

_crop_flip = [
    dict(type="RandomResizedCrop", size=(224, 224), scale=(0.08, 1.0), interpolation="bicubic"),
    dict(type="RandomHorizontalFlip"),
]
_strong = dict(
    type="timm",
    input_size=224,
    is_training=True,
    scale=(0.08, 1.0),
    auto_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.4,
    re_prob=0.25,
    re_mode="pixel",
    interpolation="bicubic",
)
_cifar_strong = dict(_strong, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
_total = {n: dict(base_batch_size=8 * n, enable=True) for n in (64, 128)}
_token = dict(
    auto_scale_lr=_total[128],
    data_preprocessor=dict(mixup_alpha=0.8, cutmix_alpha=1.0),
    ema=dict(decay=0.99996),
    train_cfg=dict(by_epoch=True, max_epochs=300, val_interval=5),
    optim_wrapper=dict(
        optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
        clip_grad=dict(max_norm=5.0),
    ),
    param_scheduler=[
        dict(type="LinearLR", start_factor=1e-3, end=20, convert_to_iter_based=True),
        dict(type="CosineAnnealingLR", begin=20, end=300, T_max=280, eta_min=1e-6, convert_to_iter_based=True),
    ],
)

_recipes = dict(
    cifar100_cnn=dict(
        auto_scale_lr=_total[128],
        train_dataloader=dict(batch_size=128, dataset=dict(transforms=_crop_flip)),
        train_cfg=dict(by_epoch=True, max_epochs=300, val_interval=5),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9, nesterov=True, weight_decay=2e-3)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=2e-3, end=3, convert_to_iter_based=True),
            dict(type="CosineAnnealingLR", begin=3, end=300, T_max=297, eta_min=1e-3, convert_to_iter_based=True),
        ],
    ),
    cifar100_token=dict(
        **_token,
        train_dataloader=dict(batch_size=128, dataset=dict(transforms=[_cifar_strong])),
    ),
    imagenet_cnn=dict(
        auto_scale_lr=_total[64],
        train_dataloader=dict(batch_size=64, dataset=dict(transforms=_crop_flip)),
        train_cfg=dict(by_epoch=True, max_epochs=100, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=1e-3, end=3, convert_to_iter_based=True),
            dict(type="MultiStepLR", milestones=[30, 60, 90], gamma=0.1),
        ],
    ),
    imagenet_token=dict(
        **_token,
        train_dataloader=dict(batch_size=128, dataset=dict(transforms=[_strong])),
    ),
    mdistiller=dict(
        auto_scale_lr=_total[64],
        train_dataloader=dict(batch_size=64, dataset=dict(transforms=_crop_flip)),
        train_cfg=dict(by_epoch=True, max_epochs=100, val_interval=1),
        optim_wrapper=dict(
            optimizer=dict(type="SGD", lr=0.2, momentum=0.9, weight_decay=1e-4),
            paramwise_cfg=dict(decay_vectors=True),
        ),
        param_scheduler=[dict(type="MultiStepLR", milestones=[30, 60, 90], gamma=0.1)],
    ),
)
