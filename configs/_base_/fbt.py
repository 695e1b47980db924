# FBT's splice: the CNN gives the first stages, whoever teaches.
# Its losses: InfoNCE on features and OFA on logits along T->S, T->F and F->S (arXiv 2410.12342).
model = dict(
    type="Distiller",
    fusion=dict(type="L2GFusion", splice="auto"),
    edges=["teacher_to_student", "teacher_to_fusion", "fusion_to_student"],
    feature_loss=dict(type="InfoNCELoss"),
    logit_loss=dict(type="OFALoss", gamma=1.0),
    task_loss=dict(type="CrossEntropyLoss", label_smoothing=0.1),
)
