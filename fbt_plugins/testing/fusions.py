"""The check of fusion strategies."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distill.fusion import FusionStrategy, ends, junction_problem
from ..distill.splice import Junction, Splice
from ..errors import ConfigError, one_line, short
from ..models.shapes import LAYOUTS, StageSpec
from ..models.weightless import on_meta, whole_copy
from ..registry.registries import FUSIONS
from .asserting import CLOSE, built, check_device, check_gradients, check_registered, refused, that
from .positions import fewest, misplaced, sight, used
from .samples import MODELS, ORDERED, SPLICES, on_the_way, weightless

PROBED = 64
"""Positions that are changed one by one; larger maps are not."""


def check_fusion(
    strategy: FusionStrategy | Mapping[str, Any],
    layouts: Sequence[str] = LAYOUTS,
    splices: Sequence[str] = SPLICES,
) -> None:
    """Checks that a strategy joins models of all layouts, grids and widths.

    A pair that the strategy refuses by a ValueError is left out, with a warning; to refuse all of them is a failure.

    Args:
        strategy: or its config, as in ``model.fusion`` without ``splice``; its plugin must be installed then.
        layouts: that it is made for; models with another are left out.
        splices: of two models of four stages.

    Raises:
        AssertionError: if a junction is missing or gives another shape than the next stage takes; if something is not
            finite, or a gradient does not reach the input and every parameter; if images of a batch are mixed, if
            eval mode is random, if what arrives is changed in place; if most positions are not looked at, come out
            in other places, or tokens are taken in another order than theirs; if prefix tokens before a head
            do not depend on the input; if it cannot be moved to a GPU, or be built without weights.
    """
    strategy = built(FUSIONS, strategy)
    if isinstance(strategy, Mapping) or not callable(getattr(strategy, "build", None)):
        raise AssertionError(f"{short(strategy)} has no build(student_specs, teacher_specs, splice)")
    models = {name: specs for name, specs in MODELS.items() if specs[0].layout in layouts}
    that(bool(models), f"layouts={layouts!r}: give some of {', '.join(LAYOUTS)}")
    pairs = [(splice, student, teacher) for splice in splices for student in models for teacher in models]
    checks = [_SpliceCheck(strategy, models, *names, thorough=names[0] == splices[0]) for names in pairs]
    refusals = [check.refusal for check in checks if not check.run()]
    who = type(strategy).__name__
    that(len(refusals) < len(checks), f"{who} refuses all that is tried: {refusals[:1]}")
    if refusals:
        text = f"{who} refuses {len(refusals)} of {len(checks)} pairs of models, for example {refusals[0]}"
        warnings.warn(text, stacklevel=2)
    other = "maps" if "maps" in models else next(iter(models))
    for name in ORDERED if "NLC" in layouts else ():
        for names in ((name, other), (other, name)):
            _SpliceCheck(strategy, {**models, **ORDERED}, splices[0], *names).run()


class _SpliceCheck:
    """One splice of two models.

    Args:
        strategy: that builds its junctions.
        models: outputs of the stages of each.
        splice: as written.
        student, teacher: names of models.
        thorough: whether to look at what does not depend on the stages besides: devices, precision, no weights.
    """

    def __init__(
        self,
        strategy: FusionStrategy,
        models: Mapping[str, Sequence[StageSpec]],
        splice: str,
        student: str,
        teacher: str,
        thorough: bool = True,
    ) -> None:
        self.strategy, self.splice = strategy, Splice.parse(splice)
        self.student, self.teacher = models[student], models[teacher]
        self.who = f"{type(strategy).__name__} ({splice}, student of {student}, teacher of {teacher})"
        self.refusal, self.thorough = "", thorough

    def run(self) -> bool:
        """Whether the strategy joins them; False if it refuses to.

        Raises:
            AssertionError: for what is wrong.
        """
        with refused(f"{self.who}: build"):
            try:
                junctions = self.strategy.build(self.student, self.teacher, self.splice)
            except (ConfigError, ValueError) as error:  # how a strategy says that it cannot
                self.refusal = f"{self.who}: {one_line(error)}"
                return False
        problem = junction_problem(junctions, self.student, self.teacher, self.splice)
        that(problem is None, f"{self.who} {problem}")
        if self.thorough:  # what --check does
            with refused(f"{self.who}: build without weights, on torch's meta device, as --check does"), on_meta():
                self.strategy.build(weightless(self.student), weightless(self.teacher), self.splice)
        for junction in self.splice.junctions:
            _JunctionCheck(self, junction, junctions[junction.name]).run()
        return True


class _JunctionCheck:
    def __init__(self, splice: _SpliceCheck, junction: Junction, module: nn.Module) -> None:
        self.source, self.target = ends(junction, splice.student, splice.teacher)
        self.module, self.thorough = module, splice.thorough
        self.who = f"{splice.who}: junction {junction.name} from {self.source} to {self.target}"
        self.into_head = junction.first > len(splice.student if junction.taker == "S" else splice.teacher)
        self.x = torch.randn(self.source.sizes(3), generator=torch.Generator().manual_seed(0))

    def run(self) -> None:
        self._eval_mode()
        self._gradients()
        if self.thorough:
            self._precision()
            check_device(self.who, self.module, lambda m: m(self.x.to("meta")))
        if 1 < math.prod(self.source.grid) <= PROBED:
            self._positions()

    def _call(self, x: Tensor, how: str) -> Tensor:
        """What it gives, once that was seen to be a tensor of the right shape."""
        with refused(f"{self.who} {how}"):
            y = self.module(x)
        given, taken = tuple(y.shape), self.target.sizes(len(x))
        that(given == taken, f"{self.who} gives {given} for a batch of {len(x)} {how}; the next stage takes {taken}")
        return y

    @torch.no_grad()
    def _eval_mode(self) -> None:
        self.module.eval()
        given = on_the_way(self.x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            y = self._call(given, "in eval mode")
            self._untouched(given)
            torch.manual_seed(1)
            again = self._call(on_the_way(self.x), "in eval mode")
        that(bool(y.isfinite().all()), f"{self.who} gives values that are not finite")
        that(
            torch.equal(y, again),
            f"{self.who}: in eval mode it gives other values for the same input the second time: dropout must be off "
            "there (nn.Dropout, or F.dropout with training=self.training), and nothing may be drawn or counted",
        )
        alone = torch.cat([self._call(on_the_way(image), "in eval mode") for image in self.x.split(1)])
        that(
            torch.allclose(y, alone, **CLOSE),
            f"{self.who} mixes the images of a batch: in eval mode it gives something else for an image that comes "
            "alone; no operation may go along the first dimension",
        )

    def _untouched(self, given: Tensor) -> None:
        that(
            torch.equal(given, self.x),
            f"{self.who} changes what arrives in place (an inplace=True, a += or a method with an underscore): the "
            "model that gave it goes on with it; compute a new tensor",
        )

    def _gradients(self) -> None:
        module, who = self.module.train(), self.who
        before = [name for name, _ in module.named_parameters()]
        leaf = self.x.clone().requires_grad_()
        x = on_the_way(leaf)
        y = self._call(x, "in train mode")
        self._untouched(x)
        that(bool(y.isfinite().all()), f"{who} gives values that are not finite")
        that(y.requires_grad, f"{who}: no gradient leads back from what it gives")
        check_registered(who, y, module, before, [leaf])
        for token in range(self.target.prefix_tokens if self.into_head else 0):
            (told,) = torch.autograd.grad(y[:, token].square().sum(), leaf, None, True, allow_unused=True)
            that(
                told is not None and bool((told.flatten(1).abs().sum(1) > 0).all()),
                f"{who}: the prefix tokens that it gives are the same for all images; a head may look at these "
                "alone, so they must come from what arrives",
            )
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        (own,) = torch.autograd.grad((y * weights)[0].sum(), leaf, None, True, allow_unused=True)
        that(own is not None, f"{who}: no gradient reaches what arrives")
        that(
            bool(own[0].any()),
            f"{who} mixes the images of a batch: in train mode what it gives for one comes from others",
        )
        (y * weights).sum().backward()
        check_gradients(who, {"what arrives": leaf}, module)
        reached = (leaf.grad.flatten(1).abs().sum(1) > 0).all()  # type: ignore[union-attr]
        that(bool(reached), f"{who}: no gradient reaches what arrives")

    @torch.no_grad()
    def _precision(self) -> None:
        self.module.eval()
        with torch.autocast("cpu", torch.bfloat16):
            y = self._call(self.x.bfloat16(), "in bfloat16 under autocast")
        that(bool(y.isfinite().all()), f"{self.who} gives values that are not finite in bfloat16 under autocast")

    def _positions(self) -> None:
        seen = sight(whole_copy(self.module).eval(), self.x[:1], self.source, self.target)
        count, needed = used(seen), fewest(self.source, self.target)
        that(
            count >= needed,
            f"{self.who} looks at {count} of the {len(seen)} positions that arrive: what the others hold is lost",
        )
        wrong = misplaced(seen, self.source, self.target)
        that(wrong is None, f"{self.who} {wrong}")
