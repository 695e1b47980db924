# The flagship's losses and fusion on the smallest models that have four stages.
# For measuring what is not arithmetic.
#   python tools/benchmark.py configs/tiny.py
_base_ = "fbt_convnext_resmlp.py"

model = dict(
    teacher=dict(
        type="timm",
        name="convnext_atto",
        num_classes=10,
        depths=(1, 1, 1, 1),
        dims=(8, 8, 8, 8),
        checkpoint=None,
        _delete_=True,
    ),
    student=dict(type="timm", name="resmlp_s4_patch4_32", num_classes=10, embed_dim=8),
)
train_dataloader = dict(batch_size=8)
teacher_cache = None
