# The study: what does the fusion model itself add? Minutes per run.
# Small models, 5,000 training images.
#   FASHION_MNIST=/usr/share/datasets/fashion-mnist python tools/compare.py configs/fashion_mnist.py \
#     --out docs/results/fashion_mnist --workers 2
# One pair gets the full grid, three more across architectures and two within one get the main methods and the controls.
# The test split is all 10,000 images. docs/results/study.md has all commands in order: teachers, tuning, study.
# Teachers that are missing are made on the way with --cfg-options teacher_run.if_missing=train
_base_ = [
    "_base_/fashion_mnist_mini.py",
    "_base_/convnext_fashion_mnist.py",
    "_base_/fashion_mnist_models.py",
    "_base_/fashion_mnist_tuned.json",
    "_base_/methods.py",
    "_base_/adamw_cosine.py",
]

_teachers = dict(
    convnext=dict(**_base_._convnext, checkpoint="embedded:convnext_fashion_mnist"),
    swin=dict(**_base_._swin, checkpoint="teachers/fashion_mnist/swin/student.safetensors"),
    mixer=dict(**_base_._mixer, checkpoint="teachers/fashion_mnist/mixer/student.safetensors"),
)
_rates = dict(resmlp=1.4e-2, swin=4e-3, resnet=4e-3)  # resmlp's was chosen without a teacher, on validation
_grid = ("convnext_resmlp", "convnext_swin", "swin_resnet", "mixer_resnet", "convnext_resnet", "mixer_resmlp")
_made_by = dict(
    convnext=None,
    swin=dict(config="{{ fileDirname }}/teachers/swin_fashion_mnist.py"),
    mixer=dict(config="{{ fileDirname }}/teachers/mixer_fashion_mnist.py"),
)
_everywhere = ("scratch", "kd", "ofa", "t_s", "t_s_x2", "fbt")
_ablations = tuple(f"fbt_{letter}" for letter in "abcdefg")
_since = ("ofa_0.1", "rsd", "rsd_ofa", "fitnet_rsd", "fbt_tau", "fbt_rsd")
_for = {
    **dict.fromkeys(("fitnet", *_since), "convnext_*"),
    "fbt_s1-3_t4": ["convnext_resmlp*", "convnext_swin"],  # on the other pairs it is fbt
    **dict.fromkeys(("crd", *_ablations), "convnext_resmlp*"),
}
_methods = {
    **_base_.methods,
    "fbt_s1-3_t4": dict(  # the form that this study was first made with
        about="FBT, S1-3+T4 though T is the CNN",
        model=dict(_base_.methods["fbt"]["model"], fusion=dict(type="L2GFusion", splice="S1-3+T4")),
    ),
}
methods = dict(
    _delete_=True,
    **{name: dict(_methods[name], pairs=_for.get(name, "*")) for name in (*_everywhere, *_for)},
)
# tools/choose.py's; what differs from a tuned method in one thing has that method's setting
_like = dict(t_s_x2="t_s", **dict.fromkeys(_ablations, "fbt"))
_tuned = {name: _base_._tuned.get(_like.get(name, name), {}).get("settings", {}) for name in (*_everywhere, *_for)}
pairs = {
    pair: dict(
        teacher_run=_made_by[pair.split("_")[0]],
        model=dict(teacher=_teachers[pair.split("_")[0]], student=_base_._students[pair.split("_")[1]]),
        optim_wrapper=dict(optimizer=dict(lr=_rates[pair.split("_")[1]])),
        methods=_tuned,
    )
    for pair in _grid
}

train_dataloader = dict(in_memory=True)
teacher_cache = dict(views=4, required=False)  # all methods see the same views
test_dataloader = dict(
    dataset=dict(type="FashionMNIST", root="{{$FASHION_MNIST:data}}", split="test", transforms=_base_._pad)
)
optim_wrapper = dict(precision="bf16")  # two thirds of the time, where the CPU has avx512_bf16
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=2)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, T_max=11, end=12, eta_min=1e-5, convert_to_iter_based=True),
]
