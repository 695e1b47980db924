# Why a fusion model S1-3+T4 adds little: likely reasons, one at a time.
# Each is beside its own T->S only. All of it is S1-3+T4, the form that the study was first made with.
#   FASHION_MNIST=/usr/share/datasets/fashion-mnist python tools/compare.py configs/fashion_mnist_reasons.py \
#     --out docs/results/fashion_mnist_reasons --results docs/results/fashion_mnist --workers 2
# The study's runs are read as well: what it has run of the first pair is not run again. What changes T->S only too is
# a pair of its own here; what changes the fusion model alone is a method of the first pair. The weak teacher is made,
# in minutes, with --cfg-options teacher_run.if_missing=train
_base_ = "fashion_mnist.py"

_fbt = _base_.methods["fbt_s1-3_t4"]["model"]
_t_s, _t_f, _f_s = _fbt["edges"]
_l2g = _fbt["fusion"]
_on_any_cpu = {
    "fbt_fs_0.5": ("FBT, F->S at half weight", dict(edges=[_t_s, _t_f, dict(name=_f_s, weight=0.5)])),
    "fbt_fs_2": ("FBT, F->S at double weight", dict(edges=[_t_s, _t_f, dict(name=_f_s, weight=2.0)])),
    "fbt_tf_2": ("FBT, T->F at double weight", dict(edges=[_t_s, dict(name=_t_f, weight=2.0), _f_s])),
    "fbt_copied": ("FBT, a trained copy of T's stage 4", dict(fusion=dict(_l2g, tail="copied"))),
    "fbt_fitnet": ("FBT, and FitNet's loss on T->S", dict(stage_loss=dict(type="FitNetLoss"))),
}
_changes = {
    name: {key: value for key, value in method["model"].items() if key in ("task_loss", "edges")}
    for name, method in _base_._methods.items()
}
_variants = {
    "fbt_flat": ("FBT, L2G without its block", dict(fusion=dict(_l2g, type="PatchEmbedOnly"))),
    "fbt_deep": ("FBT, L2G of three blocks", dict(fusion=dict(_l2g, depth=3))),
    **{name: (_base_._methods[name]["about"], _changes[name]) for name in ("fbt_warm", "fbt_ramp", "fbt_gate")},
}
methods = dict(
    _delete_=True,
    **{name: dict(_base_.methods[name], pairs="*") for name in ("t_s", "t_s_x2", "fbt_s1-3_t4", "fitnet")},
    **{
        name: dict(about=about, pairs=pair, model={**_fbt, **changes})
        for pair, variants in (("convnext_resmlp", _variants), ("convnext_resmlp.fp32", _on_any_cpu))
        for name, (about, changes) in variants.items()
    },
)
methods["fitnet"] = dict(methods["fitnet"], pairs=["convnext_resmlp", "convnext_resmlp.fp32"])
controls = {"_delete_": True, **{name: _base_.controls[name] for name in ("t_s", "t_s_x2")}}

_students = {pair: _base_.pairs[f"convnext_{pair}"] for pair in ("resmlp", "resnet", "swin")}
_settings = _students["resmlp"]["methods"]
_own = dict.fromkeys((*_variants, *_on_any_cpu), _settings["fbt_s1-3_t4"]) | dict(fbt_fitnet=_settings["fitnet"])
_resmlp = dict(_students["resmlp"], methods=dict(_settings, **_own))
_tau = {
    f"convnext_{name}.tau_{tau}": dict(
        _students[name],
        model=dict(_students[name]["model"], feature_loss=dict(type="InfoNCELoss", temperature=tau, learnable=False)),
    )
    for name, tau in (("resmlp", 0.1), ("resmlp", 0.5), ("swin", 0.1), ("resnet", 0.1))
}
_cosine = dict(type="CosineAnnealingLR", begin=1, eta_min=1e-5, convert_to_iter_based=True)
_epochs = {
    epochs: dict(
        train_cfg=dict(max_epochs=epochs),
        param_scheduler=[_base_.param_scheduler[0], dict(_cosine, T_max=epochs - 1, end=epochs)],
    )
    for epochs in (24, 36)
}
# Minutes per run on any CPU; bf16 is slower than that where it must be imitated.
_fp32 = {name: dict(optim_wrapper=dict(pair["optim_wrapper"], precision="fp32")) for name, pair in _students.items()}
_weak = {
    f"convnext_{name}.weak": dict(
        pair,
        teacher_run=dict(config="{{ fileDirname }}/teachers/convnext_weak_fashion_mnist.py"),
        model=dict(
            pair["model"],
            teacher=dict(
                pair["model"]["teacher"], checkpoint="teachers/fashion_mnist/convnext_weak/student.safetensors"
            ),
        ),
    )
    for name, pair in _students.items()
    if name != "swin"
}
pairs = {
    "_delete_": True,
    "convnext_resmlp": _resmlp,
    **_tau,
    "convnext_resmlp.batch_256": dict(_resmlp, **_epochs[24], train_dataloader=dict(batch_size=256)),
    "convnext_resmlp.epochs_36": dict(_resmlp, **_epochs[36]),
    "convnext_resmlp.fp32": dict(_resmlp, **_fp32["resmlp"]),
    **{
        f"convnext_{name}.epochs_36": dict(_students[name], **_epochs[36], **_fp32[name]) for name in ("swin", "resnet")
    },
    **_weak,
}
