# What do images without labels add to 500 that have one?
# Of 5,000 training images 500 have a label, 50 of each class, and a teacher looks at all.
#   python tools/compare.py configs/compare/few_labels.py --out docs/results/few_labels
# The teacher has its head. The task loss counts where there is a label, and the teacher's losses on every image.
# Lengths, rates and views are those of without_labels.py.
_base_ = "without_labels.py"

_methods = _base_._methods
methods = dict(
    _delete_=True, **{name: dict(_methods[name], about=_methods[name]["about"]) for name in ("scratch", "kd", "fbt")}
)
pairs = dict(
    convnext_resmlp=dict(model=dict(teacher=dict(num_classes=10), student=dict(num_classes=10))),
)
controls = dict(_delete_=True, scratch="the student alone", kd="KD")
train_dataloader = dict(dataset=dict(labelled=500))
val_evaluator = test_evaluator = [dict(type="TopK")]
