# What does the flagship's student gain, and from what?
# The flagship's own images, models and training.
#   python tools/compare.py configs/compare/flagship.py --out docs/results/flagship --workers 2
# One run takes 2 to 4 minutes of one core (OMP_NUM_THREADS=1). docs/results/index.md says what came out.
_base_ = "../fbt_convnext_resmlp.py"

_none = dict(fusion=None, edges=[], feature_loss=None, logit_loss=None)
_to_student = dict(fusion=None, edges=["teacher_to_student"])
_rsd = dict(_delete_=True, type="RSDLoss", kappa=0.01, weight=0.1)
_kd = dict(_delete_=True, type="KDLoss", temperature=4.0)
methods = dict(
    scratch=dict(
        about="the student alone",
        model=dict(teacher=None, **_none),
        teacher_cache=dict(required=False),  # the same views of the images
    ),
    kd=dict(about="KD, T = 4", model=dict(**_to_student, feature_loss=None, logit_loss=_kd)),
    fbt=dict(about="FBT: configs/fbt_convnext_resmlp.py"),
    fitnet_rsd_ofa=dict(
        about="FitNet, RSD and OFA: configs/fitnet_rsd_ofa_convnext_resmlp.py",
        model=dict(**_to_student, feature_loss=_rsd, stage_loss=dict(type="FitNetLoss", stages=(3, 4))),
    ),
)
controls = dict(scratch="the student alone", kd="KD")
pairs = dict(convnext_resmlp=dict())
seeds = [0, 1, 2, 3, 4]
cka = dict(images=512)
