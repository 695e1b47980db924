# The study's tuning: four settings of each method, judged by validation alone.
# On the study's first pair, on Fashion-MNIST; the four settings are four pairs.
#   python tools/compare.py configs/fashion_mnist_tuning.py --out docs/results/fashion_mnist_tuning --workers 2
#   python tools/choose.py configs/fashion_mnist_tuning.py --results docs/results/fashion_mnist_tuning \
#     --out configs/_base_/fashion_mnist_tuned.json
# Validation has 10,000 images here, after the last epoch: 1,000 would leave the choice to chance. None of them is among
# the study's training images, and there is no test split. The control and the ablations take the setting of what they
# belong to.
_base_ = ["fashion_mnist.py", "_base_/fashion_mnist_settings.py"]

pairs = dict(
    _delete_=True,
    **{
        f"convnext_resmlp.{n + 1}": dict(
            _base_.pairs["convnext_resmlp"],
            methods={method: _base_._settings.get(method, _base_._by_default)[n] for method in _base_.methods},
        )
        for n in range(4)
    },
)
methods = {name: dict(pairs=[]) for name in _base_._like}
seeds = [10]  # none of the study's
val_dataloader = dict(
    dataset=dict(
        type="FashionMNIST",
        root="{{$FASHION_MNIST:data}}",
        split="val",
        validation=10_000,
        transforms=_base_._pad,
    )
)
train_cfg = dict(val_interval=12)
test_dataloader = test_evaluator = test_cfg = None
