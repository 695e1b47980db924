# Which splice, at the price of a few runs? All are trained at once, and ranked.
# The best three are then finished.
#   python tools/search.py configs/search/one_shot.py
#   python tools/train.py work_dirs/search/one_shot/best.py
_base_ = "../fbt_convnext_resmlp.py"

teacher_cache = None  # splices start from any of its stages
train_dataloader = dict(in_memory=True)
search = dict(
    space={"model.fusion": dict(switches=(1, 2), strategies=[dict(type="L2GFusion")])},
    one_shot=dict(best=3, epochs=3),
)
