# Each splice trained by itself: what a one-shot search's ranking is held against.
# Three seeds (docs/results/search.md). With five seeds: what it finds against T->S only, 3+1 (the paper's own:
# T1-3+S4, for the teacher is the CNN), and a random search, the best by validation of three splices.
#   FASHION_MNIST=/usr/share/datasets/fashion-mnist python tools/compare.py configs/search/splices.py \
#     --out docs/results/splices --workers 2
#   python tools/rank_splices.py docs/results/splices --one-shot work_dirs/search/study.convnext_resmlp/search.json
_base_ = "../fashion_mnist.py"

_splices = (
    *("S1+T2-4", "S1-2+T3-4", "S1-3+T4", "S1-4+Thead", "T1+S2-4", "T1-2+S3-4", "T1-3+S4", "T1-4+Shead"),
    *("S1+T2+S3-4", "S1+T2-3+S4", "S1-2+T3+S4", "T1+S2+T3-4", "T1+S2-3+T4", "T1-2+S3+T4"),
)
_five = ("T1-3+S4", "S1-3+T4", "T1-4+Shead")  # 3+1, the other way round, and what two of three one-shot searches find
_drawn = {  # random.Random(seed).sample(_splices, 3)
    0: ["T1-2+S3+T4", "T1-3+S4", "T1+S2-3+T4"],
    1: ["S1-3+T4", "S1+T2-3+S4", "S1-2+T3-4"],
    2: ["T1-2+S3+T4", "S1+T2-4", "S1-2+T3-4"],
    3: ["S1-4+Thead", "S1+T2-3+S4", "S1+T2+S3-4"],
    4: ["S1-4+Thead", "T1+S2-4", "S1-2+T3-4"],
}
_seeds = {splice: [seed for seed in range(5) if seed < 3 or splice in (*_five, *_drawn[seed])] for splice in _splices}
_fbt, _pair = _base_.methods["fbt"]["model"], _base_.pairs["convnext_resmlp"]
methods = dict(
    _delete_=True,
    t_s=_base_.methods["t_s"],
    t_s_x2=_base_.methods["t_s_x2"],
    random=dict(about="the best by validation of three splices drawn at random", best_of=_drawn),
    **{
        splice: dict(
            about=f"FBT, {splice}",
            seeds=_seeds[splice],
            model=dict(_fbt, fusion=dict(type="L2GFusion", splice=splice)),
        )
        for splice in _splices
    },
)
pairs = dict(
    _delete_=True,
    convnext_resmlp=dict(_pair, methods=dict.fromkeys(("t_s", "t_s_x2", *_splices), _pair["methods"]["fbt"])),
)
optim_wrapper = dict(precision="fp32")  # so that it is minutes per run on any CPU
controls = {
    "_delete_": True,
    **{name: _base_.controls[name] for name in ("t_s", "t_s_x2")},
    "T1-3+S4": "3+1",
    "random": "a random search",
}
train_cfg = dict(val_interval=1)  # the fusion model's accuracy after one epoch is one of the predictors
