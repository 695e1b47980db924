# What we recommend for the flagship's pair: FitNet, RSD and OFA.
# Without a fusion model: FitNet on stages 3 and 4, RSD on features, OFA on logits.
# The same images, teacher, student and training as in fbt_convnext_resmlp.py; docs/results/index.md compares them.
#   python tools/train.py configs/fitnet_rsd_ofa_convnext_resmlp.py
_base_ = "fbt_convnext_resmlp.py"

model = dict(
    fusion=None,
    edges=["teacher_to_student"],
    stage_loss=dict(type="FitNetLoss", stages=(3, 4)),
    feature_loss=dict(_delete_=True, type="RSDLoss", kappa=0.01, weight=0.1),
)
