# Teachers of like strength for sakd_vs_cakd: a CNN, a ConvNeXt, a Swin, an MLP.
# Each is trained as the shipped ConvNeXt is, for as many epochs as it takes to about 89.5 % of the test split.
# docs/results/teachers has them, so that every run of that comparison can be made again; minutes each on one core,
# the Swin an hour and a half.
#   FASHION_MNIST=/usr/share/datasets/fashion-mnist python tools/train.py configs/teachers/peers_fashion_mnist.py \
#     --pair resnet --method plain
_base_ = ["convnext_fashion_mnist.py", "../_base_/fashion_mnist_models.py"]

train_dataloader = dict(in_memory=True)
methods = dict(plain=dict(about="a teacher"))
pairs = {
    name: dict(
        model=dict(student=model),
        train_dataloader=dict(batch_size=batch),
        train_cfg=dict(max_epochs=epochs),
        param_scheduler=[
            _base_.param_scheduler[0],
            dict(_base_.param_scheduler[1], end=epochs, T_max=epochs - 1),
        ],
        publish=f"docs/results/teachers/{name}.safetensors",
    )
    for name, model, epochs, batch in (
        ("resnet", _base_._resnet, 2, 512),
        ("convnext", _base_.model["student"], 3, 128),
        ("swin", _base_._swin, 12, 128),
        ("mixer", _base_._mixer, 7, 128),
    )
}
seeds = [0]
