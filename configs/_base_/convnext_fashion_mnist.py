# The shipped teacher: a small ConvNeXt that sees 32-pixel images at 64 (grids 16, 8, 4, 2).
_convnext = dict(
    type="timm",
    name="convnext_tiny",
    num_classes=10,
    input_size=64,
    stem_type="overlap_act",
    depths=(1, 2, 2, 1),
    dims=(24, 64, 128, 208),
    kernel_sizes=(5, 5, 3, 3),
    ls_init_value=0.1,
)
