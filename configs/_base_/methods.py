# Every method as what it changes in one distiller: edges, losses, fusion; with the settings of its authors.
# Ablations (A) to (C), (F) and (G) are FBT's own; (D) and (E) are ours, by their pattern. In a splice C is the more
# local of the two models, the CNN where there is one, and M the other.
_to_student = ["teacher_to_student"]
_triangle = ["teacher_to_student", "teacher_to_fusion", "fusion_to_student"]
_infonce = dict(type="InfoNCELoss")
_ofa = dict(type="OFALoss", gamma=1.0)
_rsd = dict(type="RSDLoss", kappa=0.01, weight=0.1)
_fbt = dict(fusion=dict(type="L2GFusion", splice="C1-3+M4"), edges=_triangle, feature_loss=_infonce, logit_loss=_ofa)

_late = dict(begin=0.13)  # fraction of training

controls = dict(scratch="the student alone", t_s="T→S only", t_s_x2="T→S only, doubled")
model = dict(type="Distiller", task_loss=dict(type="CrossEntropyLoss", label_smoothing=0.1))
methods = {
    "scratch": dict(about="the student alone", model=dict(teacher=None)),
    # what is compared between teacher and student
    "kd": dict(
        about="KD (arXiv 1503.02531)",
        model=dict(edges=_to_student, logit_loss=dict(type="KDLoss", temperature=1.0)),
    ),
    "fitnet": dict(
        about="FitNet (arXiv 1412.6550)",
        model=dict(edges=_to_student, stage_loss=dict(type="FitNetLoss")),
    ),
    "at": dict(
        about="attention transfer (arXiv 1612.03928)",
        model=dict(edges=_to_student, stage_loss=dict(type="ATLoss", beta=2000.0)),  # as in their code
    ),
    "crd": dict(
        about="CRD (arXiv 1910.10699)",
        model=dict(edges=_to_student, feature_loss=dict(type="CRDLoss")),
    ),
    "rkd": dict(
        about="RKD (arXiv 1904.05068)",
        model=dict(edges=_to_student, feature_loss=dict(type="RKDLoss", distance_weight=25.0, angle_weight=50.0)),
    ),
    "cc": dict(
        about="CC (arXiv 1904.01802), as OFA-KD compares it",
        model=dict(edges=_to_student, feature_loss=dict(type="CCLoss", reading="difference", weight=0.02)),
    ),
    "dkd": dict(
        about="DKD (arXiv 2203.08679)",
        model=dict(edges=_to_student, logit_loss=dict(type="DKDLoss", alpha=1.0, beta=2.0, temperature=1.0)),
    ),
    "dist": dict(
        about="DIST (arXiv 2205.10536)",
        model=dict(edges=_to_student, logit_loss=dict(type="DISTLoss", beta=1.0, gamma=1.0, temperature=1.0)),
    ),
    "bkd": dict(about="BKD (arXiv 2305.15781)", model=dict(edges=_to_student, logit_loss=dict(type="BKDLoss"))),
    "deit": dict(
        about="DeiT's distillation token (arXiv 2012.12877)",
        pairs="*_deit-t",
        model=dict(task_loss=None, edges=_to_student, logit_loss=dict(type="DeiTLoss", label_smoothing=0.1)),
    ),
    "ofa": dict(
        about="OFA-KD (arXiv 2310.19444): exits of stages 1 to 4, and logits",
        model=dict(edges=_to_student, stage_loss=dict(type="OFAExitsLoss"), logit_loss=_ofa),
    ),
    "ofa_0.1": dict(
        about="OFA-KD, its exits at a tenth: its authors' arguments for CIFAR-100",
        model=dict(edges=_to_student, stage_loss=dict(type="OFAExitsLoss", weight=0.1), logit_loss=_ofa),
    ),
    "rsd": dict(about="RSD (arXiv 2507.21844)", model=dict(edges=_to_student, feature_loss=_rsd)),
    "rsd_logits": dict(
        about="RSD (arXiv 2507.21844), of logits",
        model=dict(edges=_to_student, logit_loss=dict(_rsd, of="logits")),
    ),
    "rsd_ofa": dict(
        about="RSD, and OFA on logits (ours): fbt_rsd without a fusion model",
        model=dict(edges=_to_student, feature_loss=_rsd, logit_loss=_ofa),
    ),
    "fitnet_rsd": dict(
        about="FitNet and RSD (ours)",
        model=dict(edges=_to_student, stage_loss=dict(type="FitNetLoss"), feature_loss=_rsd),
    ),
    "fitnet_rsd_ofa": dict(
        about="FitNet, RSD, and OFA on logits (ours)",
        model=dict(edges=_to_student, stage_loss=dict(type="FitNetLoss"), feature_loss=_rsd, logit_loss=_ofa),
    ),
    # the controls of every claim about the fusion model
    "t_s": dict(
        about="T->S only: FBT's losses without a fusion model",
        model=dict(edges=_to_student, feature_loss=_infonce, logit_loss=_ofa),
    ),
    "t_s_x2": dict(
        about="T->S only, weight doubled",
        model=dict(edges=[dict(name="teacher_to_student", weight=2.0)], feature_loss=_infonce, logit_loss=_ofa),
    ),
    # fusion models
    "fcfd": dict(
        about="FCFD's paths (arXiv 2304.11832): stages of both mixed at random, without its L2 loss",
        model=dict(
            fusion=dict(type="ConvL2G", splice=["S1+T2-4", "S1-2+T3-4", "S1-3+T4", "T1+S2-4", "T1-2+S3-4", "T1-3+S4"]),
            edges=["teacher_to_student", "teacher_to_fusion"],
            logit_loss=dict(type="KDLoss", temperature=1.0),
        ),
    ),
    "fbt": dict(about="FBT (arXiv 2410.12342), C1-3+M4", model=_fbt),
    "fbt_m1-3_c4": dict(
        about="FBT, the other way round: M1-3+C4 (ours)",
        model=dict(_fbt, fusion=dict(type="L2GFusion", splice="M1-3+C4")),
    ),
    "fbt_a": dict(
        about="FBT (A) without MSA and stage 4",
        model=dict(_fbt, fusion=dict(type="PatchEmbedOnly", splice="C1-3+Mhead")),
    ),
    "fbt_b": dict(
        about="FBT (B) without stage 4",
        model=dict(_fbt, fusion=dict(type="L2GFusion", splice="C1-3+Mhead")),
    ),
    "fbt_c": dict(about="FBT (C) without L(T, F)", model=dict(_fbt, edges=[_triangle[0], _triangle[2]])),
    "fbt_d": dict(about="FBT (D, ours) without L(F, S)", model=dict(_fbt, edges=[_triangle[0], _triangle[1]])),
    "fbt_e": dict(about="FBT (E, ours) without L(T, S)", model=dict(_fbt, edges=[_triangle[1], _triangle[2]])),
    "fbt_f": dict(about="FBT (F) without InfoNCE", model=dict(_fbt, feature_loss=None)),
    "fbt_g": dict(about="FBT (G) without OFA", model=dict(_fbt, logit_loss=None)),
    "fbt_sw": dict(
        about="FBT, and sliced Wasserstein between stages 4 of T and S (ours)",
        model=dict(_fbt, stage_loss=dict(type="SlicedWassersteinLoss")),
    ),
    # FBT with another loss of features
    "fbt_rsd": dict(about="FBT, RSD in the place of InfoNCE (ours)", model=dict(_fbt, feature_loss=_rsd)),
    "fbt_tau": dict(
        about="FBT, InfoNCE's temperature held at 0.1 (ours)",
        model=dict(_fbt, feature_loss=dict(_infonce, temperature=0.1, learnable=False)),
    ),
    # when and how far the fusion model is listened to
    "fbt_warm": dict(
        about="FBT, L2G warmed up first (ours): T->F alone for 13 % of training",
        model=dict(
            _fbt,
            task_loss=_late,
            edges=[dict(name=_triangle[0], **_late), _triangle[1], dict(name=_triangle[2], **_late)],
        ),
    ),
    "fbt_ramp": dict(
        about="FBT, F->S rising from 0 during 30 % of training (ours)",
        model=dict(_fbt, edges=[*_triangle[:2], dict(name=_triangle[2], ramp=0.3)]),
    ),
    "fbt_gate": dict(
        about="FBT, F->S weighted by how often F agrees with T (ours)",
        model=dict(_fbt, edges=[*_triangle[:2], dict(name=_triangle[2], gate="agreement")]),
    ),
}
seeds = [0, 1, 2, 3, 4]
cka = dict(images=512)
