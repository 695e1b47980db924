# What does a fusion model add where nobody has labels?
# 5,000 training images without any, and a teacher without a head.
#   python tools/compare.py configs/compare/without_labels.py --out docs/results/without_labels
# The losses of three methods, of features alone; beside them the student that has all 5,000 labels and no teacher.
# Labels are used for figures only: k-NN and probe take those of the training images, and classify the test images.
# The best epoch is that with the highest retrieval agreement on validation images, which needs no label either.
_base_ = [
    "../_base_/fashion_mnist_mini.py",
    "../_base_/convnext_fashion_mnist.py",
    "../_base_/fashion_mnist_models.py",
    "../_base_/methods.py",
    "../_base_/adamw_cosine.py",
]

_encoder = dict(num_classes=0)
_alone = dict(task_loss=None, logit_loss=None)
_measures = [dict(type="Retrieval"), dict(type="KNN")]
_bank = dict(batch_size=250, dataset=dict(type="FashionMNISTMini", split="train", transforms=_base_._pad))
_tested = [dict(type="KNN", bank=_bank), dict(type="LinearProbe", bank=_bank)]

_methods = _base_.methods
methods = dict(
    _delete_=True,
    labels=dict(
        about="the student with all labels, no teacher",
        model=dict(teacher=None, student=dict(num_classes=10)),
        train_dataloader=dict(dataset=dict(labelled=None)),
        val_evaluator=[dict(type="TopK"), dict(type="KNN")],
        test_evaluator=[*_tested, dict(type="TopK")],
    ),
    t_s=dict(about="InfoNCE, T→S only", model=dict(_methods["t_s"]["model"], **_alone)),
    rsd=dict(about="RSD (arXiv 2507.21844), T→S only", model=dict(_methods["rsd"]["model"], **_alone)),
    fbt=dict(about="FBT (arXiv 2410.12342): InfoNCE on three edges", model=dict(_methods["fbt"]["model"], **_alone)),
)
pairs = dict(
    convnext_resmlp=dict(
        model=dict(
            teacher=dict(_base_._convnext, **_encoder, checkpoint="embedded:convnext_fashion_mnist"),
            student=dict(_base_._students["resmlp"], **_encoder),
        )
    )
)
controls = dict(_delete_=True, t_s="T→S only", labels="the student with all labels")
seeds = [0, 1, 2, 3, 4]

optim_wrapper = dict(optimizer=dict(lr=1.4e-2), precision="bf16")
train_dataloader = dict(in_memory=True, dataset=dict(labelled=0))
teacher_cache = dict(views=4, required=False)  # all methods see the same views
val_evaluator = _measures
test_evaluator = _tested
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=4)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, T_max=11, end=12, eta_min=1e-5, convert_to_iter_based=True),
]
