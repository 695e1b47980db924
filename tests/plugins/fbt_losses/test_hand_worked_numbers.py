"""Losses against numbers worked out by hand.

Logits are logarithms of probabilities, so that softmax gives the probabilities back: with p_s = (1/2, 1/4, 1/4) and
p_t = (1/4, 1/2, 1/4), ln 2 = 0.693147... is all that is needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from fbt_losses.rsd import RSDLoss
from torch import Tensor, nn

from fbt_plugins import LOSSES, Batch, Knowledge, StageSpec
from fbt_plugins.distill.loss_contract import ModelInfo, set_up

LN2 = math.log(2)
STUDENT = Knowledge(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5, 0.25, 0.25]]).log() + 7)  # a shift changes nothing
TEACHER = Knowledge(torch.tensor([[4.0, 3.0]]), torch.tensor([[0.25, 0.5, 0.25]]).log())
FIRST = Batch(torch.tensor([0]))


def value(config: dict, student: Knowledge = STUDENT, teacher: Knowledge = TEACHER, batch: Batch = FIRST) -> float:
    return LOSSES.build(config)(student, teacher, batch).item()


def test_cross_entropy() -> None:
    # -ln(1/2) = ln 2
    assert value(dict(type="CrossEntropyLoss")) == pytest.approx(LN2)
    # e = 0.3: 0.7 ln 2 + 0.1 (ln 2 + 2 ln 2 + 2 ln 2) = 1.2 ln 2
    assert value(dict(type="CrossEntropyLoss", label_smoothing=0.3)) == pytest.approx(1.2 * LN2)
    # soft labels (1/2, 1/2, 0): (ln 2 + 2 ln 2) / 2
    assert value(dict(type="CrossEntropyLoss"), batch=Batch(torch.tensor([[0.5, 0.5, 0.0]]))) == pytest.approx(
        1.5 * LN2
    )


def test_kd() -> None:
    # KL(p_t || p_s) = 1/4 ln(1/2) + 1/2 ln 2 + 1/4 ln 1 = 1/4 ln 2
    assert value(dict(type="KDLoss")) == pytest.approx(0.25 * LN2)
    # T = 1/2 squares the probabilities: (4, 1, 1)/6 and (1, 4, 1)/6; KL = (1/6) ln(1/4) + (4/6) ln 4 = ln 2; times 1/4
    assert value(dict(type="KDLoss", temperature=0.5)) == pytest.approx(0.25 * LN2)


def test_dkd() -> None:
    # target 0: (1/4, 3/4) and (1/2, 1/2) of target and not; (2/3, 1/3) and (1/2, 1/2) of the others
    tckd = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    nckd = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert value(dict(type="DKDLoss")) == pytest.approx(tckd + 2 * nckd)
    assert value(dict(type="DKDLoss", alpha=3.0, beta=0.5)) == pytest.approx(3 * tckd + 0.5 * nckd)
    # beta = 1 - p_t^c is KD
    assert value(dict(type="DKDLoss", beta=0.75)) == pytest.approx(0.25 * LN2)
    # T = 1/2: (1/6, 5/6) and (2/3, 1/3); (4/5, 1/5) and (1/2, 1/2); times 1/4
    tckd = 1 / 6 * math.log(1 / 4) + 5 / 6 * math.log(5 / 2)
    nckd = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    assert value(dict(type="DKDLoss", temperature=0.5)) == pytest.approx((tckd + 2 * nckd) / 4)


def test_dist() -> None:
    # less their means: (2, -1, -1)/12 and (-1, 2, -1)/12, whose correlation is -3/6; nothing correlates over one image
    assert value(dict(type="DISTLoss")) == pytest.approx(1.5 + 1)
    # two images swapped: over images, two classes correlate with -1 and the third, which is constant, not at all
    both = torch.cat([STUDENT.logits, TEACHER.logits])
    swapped = [Knowledge(torch.zeros(2, 2), x) for x in (both, both.flip(0))]
    assert value(dict(type="DISTLoss"), *swapped) == pytest.approx(1.5 + 5 / 3)
    assert value(dict(type="DISTLoss", beta=2.0, gamma=0.5), *swapped) == pytest.approx(3 + 5 / 6)
    # T = 1/2: (4, 1, 1)/6 and (1, 4, 1)/6 correlate as before; times 1/4
    assert value(dict(type="DISTLoss", temperature=0.5, gamma=0.0)) == pytest.approx(1.5 / 4)


def test_bkd() -> None:
    # sigmoids (1/2, 3/4, 1/4), teacher (1/4, 1/2, 1/4)
    student = Knowledge(STUDENT.features, torch.tensor([[0.0, math.log(3), -math.log(3)]]))
    low, high = math.log(1 / 4), math.log(3 / 4)
    expected = -(-LN2 + (high + low) / 2 + (low + 3 * high) / 4) / 3
    assert value(dict(type="BKDLoss"), student) == pytest.approx(expected)


def test_rkd() -> None:
    """A triangle of sides 3, 4, 5 and an equilateral one, which lies in more dimensions."""
    student = Knowledge(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), torch.zeros(3, 3))
    teacher = Knowledge(torch.eye(4)[:3], torch.zeros(3, 3))
    # distances over their mean: 3/4, 1, 5/4 and 1, 1, 1; each pair counts twice, of 9
    distance = 2 * (0.25**2 + 0.25**2) / 2 / 9
    # cosines 0, 3/5, 4/5 and 1/2, 1/2, 1/2; each twice, of 27
    angle = 2 * (0.5**2 + 0.1**2 + 0.3**2) / 2 / 27
    assert value(dict(type="RKDLoss"), student, teacher) == pytest.approx(25 * distance + 50 * angle)
    only = dict(type="RKDLoss", distance_weight=2.0, angle_weight=0.0)
    assert value(only, student, teacher) == pytest.approx(2 * distance)


def test_rsd() -> None:
    a, b = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])  # of mean 0, uncorrelated

    def rsd(student: Sequence[Tensor], teacher: Sequence[Tensor], kappa: float = 0.01) -> float:
        loss = RSDLoss(kappa)
        loss.projector = nn.Identity()
        known = [Knowledge(torch.stack(list(columns), 1), torch.zeros(4, 3)) for columns in (student, teacher)]
        return loss(*known, FIRST).item()

    # P = 1; an offset and a scale of a dimension change nothing
    assert rsd((7 + 2 * a, b), (a, 3 * b - 1)) == pytest.approx(0, abs=1e-6)
    # P = (0, 1; 1, 0): twice (0 - 1)^2, and twice kappa
    assert rsd((b, a), (a, b)) == pytest.approx(2 + 2 * 0.01, rel=1e-4)
    # P = (-1, sqrt(3)/2; 0, 1/2), for b + sqrt(3) a has the standard deviation 2
    assert rsd((-a, b + math.sqrt(3) * a), (a, b), 0.1) == pytest.approx(4 + 0.25 + 0.1 * 0.75, rel=1e-4)


def test_cc_kernel() -> None:
    # cosines of the two images 0 and 1: K = e^-0.8 and e^-0.8 (1 + 0.8 + 0.8^2/2), which differ in 2 of 4 pairs
    student = Knowledge(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.zeros(2, 3))
    teacher = Knowledge(torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]), torch.zeros(2, 3))
    assert value(dict(type="CCLoss"), student, teacher) == pytest.approx((math.exp(-0.8) * 1.12) ** 2 / 2)
    # order 1, gamma 1/2: e^-1 (1 + 1) - e^-1
    config = dict(type="CCLoss", gamma=0.5, order=1)
    assert value(config, student, teacher) == pytest.approx(math.exp(-2) / 2)


def test_cc_difference_is_the_mean_over_orders_of_what_neighbours_give() -> None:
    loss = LOSSES.build(dict(type="CCLoss", reading="difference", dim=2))
    loss.setup((), (), {"student_features": 2, "teacher_features": 2})
    for embedding in (loss.embed_student, loss.embed_teacher):
        torch.nn.init.eye_(embedding.weight), torch.nn.init.zeros_(embedding.bias)
    student = Knowledge(torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 0.0]]), torch.zeros(3, 3))
    teacher = Knowledge(torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 3.0]]), torch.zeros(3, 3))
    # differences (1, 0), (1, 2), (0, 3); products 1, 0, 6
    assert loss(student, teacher, FIRST).item() == pytest.approx(7 / 3)
    products = {(0, 1): 1, (0, 2): 0, (1, 2): 6}
    orders = list(itertools.permutations(range(3)))
    neighbours = sum(products[min(a, b), max(a, b)] / 2 for o in orders for a, b in itertools.pairwise(o))
    assert neighbours / len(orders) == pytest.approx(7 / 3)


def test_mse() -> None:
    # ((3 - 4)^2 + (4 - 3)^2) / 2 = 1
    assert value(dict(type="MSELoss")) == pytest.approx(1.0)


def test_ofa_at_gamma_one_is_the_cross_entropy_with_the_teacher_in_both_readings() -> None:
    # 1/4 ln 2 + 1/2 (2 ln 2) + 1/4 (2 ln 2) = 7/4 ln 2
    for modulate in ("target", "all"):
        assert value(dict(type="OFALoss", modulate=modulate)) == pytest.approx(1.75 * LN2)


def test_ofa_raises_the_target_class() -> None:
    # target 0, gamma 2: ((5/4)^2 - 1) ln 2 + 1/2 (2 ln 2) + 1/4 (2 ln 2) = (9/16 + 3/2) ln 2
    assert value(dict(type="OFALoss", gamma=2.0)) == pytest.approx((9 / 16 + 1.5) * LN2)
    # target 1: 1/4 ln 2 + ((3/2)^2 - 1) (2 ln 2) + 1/4 (2 ln 2) = (1/4 + 5/2 + 1/2) ln 2
    assert value(dict(type="OFALoss", gamma=2.0), batch=Batch(torch.tensor([1]))) == pytest.approx(3.25 * LN2)


def test_ofa_with_every_class_raised() -> None:
    # target 0, gamma 2: ((5/4)^2 - 1) ln 2 + (1/2)^2 (2 ln 2) + (1/4)^2 (2 ln 2) = (9/16 + 1/2 + 1/8) ln 2
    assert value(dict(type="OFALoss", gamma=2.0, modulate="all")) == pytest.approx((9 / 16 + 5 / 8) * LN2)


def test_ofa_divides_both_logits_by_the_temperature_and_has_no_factor() -> None:
    # T = 1/2: p_s = (4, 1, 1)/6, p_t = (1, 4, 1)/6; -(1/6) ln(4/6) - (5/6) ln(1/6) = ln 6 - (1/3) ln 2
    assert value(dict(type="OFALoss", temperature=0.5)) == pytest.approx(math.log(6) - LN2 / 3, rel=1e-6)


def test_ofa_takes_the_largest_soft_label_as_target() -> None:
    soft = Batch(torch.tensor([[0.2, 0.7, 0.1]]))
    expected = value(dict(type="OFALoss", gamma=2.0), batch=Batch(torch.tensor([1])))
    assert value(dict(type="OFALoss", gamma=2.0), batch=soft) == pytest.approx(expected)


def test_infonce() -> None:
    """Two orthogonal unit directions: similarity 1 on the diagonal and 0 off it."""
    features = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    same = Knowledge(features, torch.zeros(2, 3))
    # tau = 1/2: -ln(e^2 / (e^2 + 1)) = ln(1 + e^-2)
    assert value(dict(type="InfoNCELoss", temperature=0.5), same, same) == pytest.approx(math.log1p(math.exp(-2)))
    # positives swapped: ln(1 + e^2)
    swapped = Knowledge(features.flip(0), torch.zeros(2, 3))
    assert value(dict(type="InfoNCELoss", temperature=0.5), same, swapped) == pytest.approx(math.log1p(math.exp(2)))


def test_infonce_anchors_are_the_receivers() -> None:
    # student (1,0), (0.6, 0.8); teacher (1,0), (0,1); tau 1. Rows: [1, 0], [0.6, 0.8]; columns: [1, 0.6], [0, 0.8]
    student = Knowledge(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.zeros(2, 3))
    teacher = Knowledge(torch.eye(2), torch.zeros(2, 3))
    rows = (math.log1p(math.exp(-1)) + math.log1p(math.exp(0.6 - 0.8))) / 2
    columns = (math.log1p(math.exp(0.6 - 1)) + math.log1p(math.exp(0 - 0.8))) / 2
    assert value(dict(type="InfoNCELoss", temperature=1.0), student, teacher) == pytest.approx(rows)
    both = dict(type="InfoNCELoss", temperature=1.0, symmetric=True)
    assert value(both, student, teacher) == pytest.approx((rows + columns) / 2)


def test_infonce_of_one_image_is_zero() -> None:
    assert value(dict(type="InfoNCELoss")) == pytest.approx(0.0, abs=1e-6)


def test_losses_are_means_over_the_batch() -> None:
    twice = [Knowledge(k.features.repeat(2, 1), k.logits.repeat(2, 1)) for k in (STUDENT, TEACHER)]
    labels = Batch(FIRST.labels.repeat(2))
    for name in ("BKDLoss", "CrossEntropyLoss", "DKDLoss", "KDLoss", "MSELoss", "OFALoss"):
        assert value(dict(type=name), *twice, labels) == pytest.approx(value(dict(type=name)))


def test_deit() -> None:
    """Class head (1/2, 1/4, 1/4) and label 0: ln 2. Distillation head the same; the teacher decides for 1: 2 ln 2."""
    student = Knowledge(
        STUDENT.features, TEACHER.logits, extra=dict.fromkeys(("class_logits", "distillation_logits"), STUDENT.logits)
    )
    assert value(dict(type="DeiTLoss"), student) == pytest.approx((1 / 2 + 2 / 2) * LN2)
    assert value(dict(type="DeiTLoss", alpha=0.25), student) == pytest.approx((3 / 4 + 2 / 4) * LN2)
    # label smoothing is the labels' alone: 1.2 ln 2, as above
    assert value(dict(type="DeiTLoss", label_smoothing=0.3), student) == pytest.approx((1.2 / 2 + 2 / 2) * LN2)
    # soft: KL = 1/4 ln 2 at tau 1, and (1/2)^2 ln 2 at tau 1/2, as above
    for tau in (1.0, 0.5):
        soft = dict(type="DeiTLoss", distillation_type="soft", tau=tau)
        assert value(soft, student) == pytest.approx((1 / 2 + 1 / 8) * LN2)


# ---- losses of stages ------------------------------------------------------------------------------------------------


def stage(values: list) -> Tensor:
    """One image's map, (channels, 1, width), as (1, channels, 1, width)."""
    return torch.tensor(values, dtype=torch.float32)[None, :, None]


def between(config: dict, student: Tensor, teacher: Tensor, **weights: list) -> float:
    """A loss of stage 1 between two maps, with the given weights in the place of trained ones."""
    loss = LOSSES.build(dict(stages=(1,), **config))
    infos = [ModelInfo([StageSpec("NCHW", x.shape[1], tuple(x.shape[2:]))], 2) for x in (student, teacher)]
    set_up(loss, *infos, {"num_classes": 3})
    for name, parameter in loss.named_parameters():
        weight = torch.tensor(weights[name.rsplit(".", 1)[-1]], dtype=torch.float32)
        parameter.data = weight.reshape(parameter.shape)
    known = [Knowledge(k.features, k.logits, {1: x}) for k, x in ((STUDENT, student), (TEACHER, teacher))]
    return loss(*known, FIRST).item()


def test_fitnet() -> None:
    # r = (2, -1) makes (1, 3) to (2, 6) and (-1, -3); off (0, 2), (1, 1) by 2, 4, -2, -4: (4 + 16 + 4 + 16) / 4 = 10
    fitnet = dict(type="FitNetLoss")
    assert between(fitnet, stage([[1, 3]]), stage([[0, 2], [1, 1]]), weight=[2, -1]) == pytest.approx(10)
    # one position is all positions of a larger grid: (5 - 4)^2, (5 - 8)^2
    assert between(fitnet, stage([[5]]), stage([[4, 8]]), weight=[1]) == pytest.approx((1 + 9) / 2)
    # a triangle of twice the width where 4 positions become 2: weights 3, 3, 1 of 7, so 3 and 4 of 7, 0, 0, 0
    assert between(fitnet, stage([[7, 0, 0, 0]]), stage([[0, 0]]), weight=[1]) == pytest.approx(3**2 / 2)


def test_attention_transfer() -> None:
    # attention maps (1 + 2, 4 + 0) = (3, 4) and (4, 3), normalised off by 1/5 each: 1000/2 (1/25)
    student, teacher = stage([[1, 2], [-math.sqrt(2), 0]]), stage([[2, math.sqrt(3)]])
    assert between(dict(type="ATLoss"), student, teacher) == pytest.approx(20)
    assert between(dict(type="ATLoss", beta=0.1), student, teacher) == pytest.approx(0.002)
    assert between(dict(type="ATLoss", p=1.0), stage([[3, -4]]), stage([[4, 3]])) == pytest.approx(20)
    # a student's one position is interpolated to (1, 1) / sqrt 2; the teacher's are (0, 1)
    expected = 500 * (0.5 + (1 - math.sqrt(0.5)) ** 2) / 2
    assert between(dict(type="ATLoss"), stage([[3]]), stage([[0, 5]])) == pytest.approx(expected)


def test_sliced_wasserstein_in_one_dimension_is_wasserstein() -> None:
    sliced = dict(type="SlicedWassersteinLoss", projections=3)
    one = dict(weight=[1], bias=[0])
    # {0, 2} and {1, 5}: (1^2 + 3^2) / 2
    assert between(sliced, stage([[2, 0]]), stage([[1, 5]]), **one) == pytest.approx(5)
    # halves of {0, 3} and thirds of {1, 2, 6}, in sixths: 2 of (0 - 1)^2, (0 - 2)^2, (3 - 2)^2, 2 of (3 - 6)^2
    assert between(sliced, stage([[3, 0]]), stage([[6, 1, 2]]), **one) == pytest.approx((2 + 4 + 1 + 18) / 6)
    # the linear layer doubles and shifts: {1, 7} and {1, 5}
    assert between(sliced, stage([[3, 0]]), stage([[1, 5]]), weight=[2], bias=[1]) == pytest.approx(2)


def test_sliced_wasserstein_of_a_shift_is_its_square_over_the_channels() -> None:
    torch.manual_seed(0)
    sliced = dict(type="SlicedWassersteinLoss", projections=20_000)
    found = between(
        sliced, stage([[1, 2, 3], [1, 0, 5]]), stage([[4, 5, 6], [5, 4, 9]]), weight=[1, 0, 0, 1], bias=[0, 0]
    )
    assert found == pytest.approx((3**2 + 4**2) / 2, rel=0.02)


class Told(nn.Module):
    """An exit that says what the student's head says."""

    def forward(self, x: Tensor) -> Tensor:
        return STUDENT.logits


def test_ofa_exits_add_up_ofa() -> None:
    # each exit as OFA above: 7/4 ln 2, and (9/16 + 3/2) ln 2 at gamma 2
    for gamma, expected in ((1.0, 1.75), (2.0, 9 / 16 + 1.5)):
        loss = LOSSES.build(dict(type="OFAExitsLoss", stages=(2, 3), gamma=gamma))
        loss.exits.update({"2": Told(), "3": Told()})
        known = Knowledge(STUDENT.features, STUDENT.logits, {2: STUDENT.features, 3: STUDENT.features})
        assert loss(known, TEACHER, FIRST).item() == pytest.approx(2 * expected * LN2)
