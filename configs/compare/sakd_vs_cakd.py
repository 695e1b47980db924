# Which teacher? Of the student's own architecture (SAKD), or of another (CAKD).
# One student, and teachers of like strength: its own architecture, another CNN, attention, an MLP; each with KD, T->S
# only, FBT, and FBT with the splice that a one-shot search has found for the pair.
#   python tools/train.py configs/teachers/peers_fashion_mnist.py --pair resnet --method plain   # docs/results/teachers
#   python tools/search.py configs/compare/sakd_vs_cakd.py --pair resnet_resnet --method fbt      # where _found is from
#   python tools/compare.py configs/compare/sakd_vs_cakd.py --out docs/results/sakd_vs_cakd --workers 2
# FASHION_MNIST=/usr/share/datasets/fashion-mnist before each of them.
_base_ = "../search/study.py"

_teachers = dict(resnet=_base_._resnet, convnext=_base_._convnext, swin=_base_._swin, mixer=_base_._mixer)
_file = {name: f"docs/results/teachers/{name}.safetensors" for name in _teachers}
_run = {
    name: dict(config="{{ fileDirname }}/../teachers/peers_fashion_mnist.py", pair=name, method="plain")
    for name in _teachers
}
_found = dict(  # docs/results/sakd_vs_cakd/searches.jsonl; of the Swin another training of the recipe, 89.49 %
    resnet="S1-2+T3-4+Shead", convnext="S1-4+Thead", swin="T1-4+Shead", mixer="S1-4+Thead"
)
_drawn = {  # random.Random(seed).sample(splices, 3), from those of ../search/splices.py
    0: ["T1-2+S3+T4", "T1-3+S4", "T1+S2-3+T4"],
    1: ["fbt", "S1+T2-3+S4", "S1-2+T3-4"],
    2: ["T1-2+S3+T4", "S1+T2-4", "S1-2+T3-4"],
    3: ["S1-4+Thead", "S1+T2-3+S4", "S1+T2+S3-4"],
    4: ["S1-4+Thead", "T1+S2-4", "S1-2+T3-4"],
}
_random = {splice: splice for splices in _drawn.values() for splice in splices if splice != "fbt"}
_splices = {name: dict(fbt_found=splice) for name, splice in _found.items()}
_splices["swin"] |= _random
_settings = _base_.pairs["convnext_resnet"]["methods"]
_searched = {
    name: {
        method: dict(model=dict(_settings["fbt"]["model"], fusion=dict(splice=splice)))
        for method, splice in splices.items()
    }
    for name, splices in _splices.items()
}

methods = dict(
    _delete_=True,
    scratch=dict(_base_.methods["scratch"], pairs="resnet_*"),  # the same whatever the teacher
    **{name: _base_.methods[name] for name in ("kd", "t_s", "t_s_x2", "fbt")},
    fbt_found=dict(
        _base_.methods["fbt"],
        about="FBT with the splice that a one-shot search has found",
        pairs=[f"{name}_resnet" for name in _found],
    ),
    random=dict(about="the best by validation of three splices drawn at random", pairs="swin_resnet", best_of=_drawn),
    **{
        splice: dict(
            _base_.methods["fbt"],
            about=f"FBT, {splice}",
            pairs="swin_resnet",
            seeds=[seed for seed, splices in _drawn.items() if splice in splices],
        )
        for splice in _random
    },
)
pairs = dict(
    _delete_=True,
    **{
        f"{name}_resnet": dict(
            teacher_run=_run[name],
            model=dict(teacher=dict(teacher, checkpoint=_file[name]), student=_base_._students["resnet"]),
            optim_wrapper=dict(optimizer=dict(lr=_base_._rates["resnet"])),
            methods={**_settings, **_searched.get(name, {})},
        )
        for name, teacher in _teachers.items()
    },
)
seeds = [0, 1, 2, 3, 4]
# Besides T->S only and the same doubled. 3+1 is S1-3+T4 with all four teachers: the student is a CNN, and begins.
controls = dict(fbt="3+1", random="a random search")
