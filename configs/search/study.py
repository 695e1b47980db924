# The study of one-shot search: the pairs, data and recipe of fashion_mnist.
# docs/results/search.md has what came out.
#   FASHION_MNIST=/usr/share/datasets/fashion-mnist python tools/search.py configs/search/study.py \
#     --pair convnext_resmlp --method fbt
_base_ = "../fashion_mnist.py"

optim_wrapper = dict(precision="fp32")  # as in splices.py

search = dict(
    space={"model.fusion": dict(switches=(1, 2), strategies=[dict(type="L2GFusion")])},
    one_shot=dict(best=3, epochs=3),
)
