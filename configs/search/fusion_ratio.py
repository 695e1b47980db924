# Which splice, and which projector? All fusion ratios of the flagship's pair.
# Both directions, one or two junctions.
#   python tools/search.py configs/search/fusion_ratio.py --workers 2
#   python tools/train.py work_dirs/search/fusion_ratio/best.py
_base_ = "../fbt_convnext_resmlp.py"

model = dict(teacher=dict(stages=6))  # of its six blocks each is one; the student has four
teacher_cache = None  # splices start from any of its stages
train_dataloader = dict(in_memory=True)
search = dict(
    space={
        "model.fusion": dict(switches=(1, 2), strategies="all"),
        "model.logit_loss.gamma": dict(low=1.0, high=2.0, step=0.25),
        "model.task_loss.weight": [0.25, 0.5, 1.0, 2.0],
    },
    objectives=["student_top1"],
    sampler="tpe",
    pruner="asha",
    trials=40,
)
