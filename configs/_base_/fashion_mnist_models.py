# Small models for 32-pixel images: teachers, of which the Swin sees them at 64, and students.
_fashion = dict(num_classes=10, mean=(0.2860,) * 3, std=(0.3530,) * 3)
_window = dict(window_size=4, num_heads=(2, 4, 8, 16))
_swin = dict(
    _fashion, type="timm", name="swin_pico_patch4_window7_224", **_window, embed_dim=32, img_size=64, input_size=64
)
_mixer = dict(_fashion, type="timm", name="mixer_s4_patch4_32", embed_dim=128)
_resnet = dict(_fashion, type="timm", name="resnet18", channels=(16, 32, 64, 128), input_size=64)
_students = dict(
    resmlp=dict(_fashion, type="timm", name="resmlp_s4_patch4_32"),
    swin=dict(
        _fashion,
        type="timm",
        name="swin_pico_patch4_window7_224",
        **_window,
        embed_dim=16,
        depths=(1, 1, 2, 1),
        img_size=32,
        patch_size=2,
    ),
    resnet=dict(_resnet, layers=(1, 1, 1, 1)),
)
