# AdamW, one epoch of warm-up, then a cosine to almost nothing. A config sets max_epochs, T_max (one less) and end.
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    constructor="MergedGroupConstructor",
    clip_grad=dict(max_norm=5.0),
)
