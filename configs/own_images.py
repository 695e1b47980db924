# Your own images, with or without labels: `fbt distill` as a file to change.
# The teacher's weights are downloaded.
#   IMAGES=~/photos fbt train own_images
# Or name the folder with --cfg-options train_dataloader.dataset.root=DIR val_dataloader.dataset.root=DIR
_base_ = ["_base_/fbt.py", "_base_/adamw_cosine.py"]

_images = dict(type="Images", root="{{$IMAGES:photos}}", validation=100)  # 100 are held out, always the same
_shown = dict(batch_size=64, num_workers="auto", persistent_workers=True)
_view = [dict(type="RandomResizedCrop", size=(224, 224), scale=(0.3, 1.0)), dict(type="RandomHorizontalFlip")]
_centre = [dict(type="Resize", size=256), dict(type="CenterCrop", size=224)]
_model = dict(type="timm", num_classes=0)  # features only; with labels the student gets their number of classes
model = dict(
    teacher=dict(_model, name="vit_small_patch14_dinov2.lvd142m", pretrained=True, dynamic_img_size=True),
    student=dict(_model, name="mobilenetv4_conv_small"),
    logit_loss=None,  # a teacher without classes has none to compare
    task_loss=None,  # with labels drop this line: a step's loss then counts where there is one
)
train_dataloader = dict(_shown, drop_last=True, dataset=dict(_images, split="train", transforms=_view))
train_dataloader["sampler"] = dict(type="SeededSampler", shuffle=True)
val_dataloader = dict(_shown, dataset=dict(_images, split="val", transforms=_centre))
val_dataloader["sampler"] = dict(type="SeededSampler", shuffle=False)
val_evaluator, val_cfg = dict(type="Retrieval"), dict()  # with labels: [dict(type="TopK"), dict(type="KNN")]
train_cfg = dict(by_epoch=True, max_epochs=50, val_interval=2)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=50, end=50, convert_to_iter_based=True)]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
