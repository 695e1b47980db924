"""Cuts any network into stages and a head by tracing it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from torch import nn

from fbt_plugins import ConfigError, FBTError, StagedModel, nearest
from fbt_plugins.authoring import probe_tokens

from .cut_points import classifiers_of, found, from_feature_info
from .layouts import Shape, read_shape
from .shared_weights import SharedWeightError, held, no_weight_twice
from .tokens import Reader, by_probe, by_size
from .traced import Crossing, Image, Reached, Trace
from .traced_parts import TracedCode, TracedHead, TracedPart
from .tracer import TraceError


def cut_by_trace(
    net: nn.Module,
    stages: int | Sequence[str] | None = None,
    *,
    name: str,
    image_size: tuple[int, int],
    in_chans: int = 3,
    input_size: tuple[int, int] | None = None,
    layout: str | Sequence[str] | None = None,
    feature: str = "classifier",
    prefix_tokens: int = 0,
    encoder: bool = False,
    **about: Any,
) -> StagedModel:
    """Cuts a network.

    Args:
        net: maps images to logits, or an encoder to features (N, D).
        stages: None for four stages, where the field would cut; a number; or the names of the modules that end them.
        name: what messages call it.
        image_size, input_size, in_chans: see :class:`StagedModel`; the first trace is of images of that size.
        layout: of the stages' outputs, one or one each; None reads it off their sizes.
        feature: "classifier"; "avgpool" needs a declaration, which says what the last norm is.
        prefix_tokens: where a stage alone has so many, and no other confirms them.
        encoder: it has no classifier: its output is the features.
        about: what :class:`StagedModel` is told besides.

    Raises:
        ConfigError: if the network cannot be cut so, with the reason and with what crosses.
    """
    if feature != "classifier":
        raise ConfigError(f"{name}: feature {feature!r} needs a declared cut; a traced one has 'classifier' only")
    image = (in_chans, *(input_size or image_size))
    try:
        classifiers = [] if encoder else classifiers_of(net, image)
        made = _cut(net, stages, classifiers, image)
        seen: list[Shape | None] = []
        if about.get("raster", True) is None and not any(p.is_meta for p in net.parameters()):
            made, seen = _probed(made, net, stages, classifiers, image)
        code, cuts, reached = made
        shapes = [_shape(cut, layout, i, image, net) for i, cut in enumerate(cuts)]
        for i, shape in enumerate(seen):
            if shape is not None and shapes[i].layout == "NLC":
                shapes[i] = shape
        _not_guessed(shapes, cuts, seen, {0, prefix_tokens, getattr(net, "num_prefix_tokens", 0)})
    except TraceError as error:
        raise ConfigError(f"{name}: {error}; {error.step or by_name(net)}") from error
    except FBTError as error:
        raise ConfigError(f"{name}: {error}") from error
    reached[-1] = (reached[-1][0], reached[-1][1] | dict.fromkeys(_left(net, reached), ""))
    parts = [TracedPart(net, code, i, *names) for i, names in enumerate(reached[:-1])]
    head = TracedHead(net, code, len(parts), *reached[-1])
    layouts, prefixes = [s.layout for s in shapes], [s.prefix_tokens for s in shapes]
    model = StagedModel(
        net,
        parts,
        head,
        layout=layouts,
        prefix_tokens=prefixes,
        image_size=image_size,
        input_size=input_size,
        in_chans=in_chans,
        name=name,
        way="traced",
        **about,
    )
    if seen:  # as the proof will
        _, misplaced = probe_tokens(model, model.specs, model.image_size)
        if misplaced:
            raise ConfigError(f"{name}: {misplaced.reason} ({cuts[misplaced.stage - 1].line}); {misplaced.step}")
    return model


def by_name(net: nn.Module) -> str:
    """What helps where a trace does not: the config that names all that runs, with the network's own names in it."""
    lists = (nn.ParameterList, nn.ParameterDict)  # which nobody can run
    children = ((n, c) for n, c in net.named_children() if not isinstance(c, lists))
    names = [name for name, child in children if any(True for _ in child.parameters())]
    if len(names) < 2:
        return "write a StagedModel of its parts, which takes five lines (docs/guides/models.md)"
    *body, last = names
    rows = [*body[:3], "..."] if len(body) > 4 else body
    text = ", ".join(map(repr, rows))
    return (
        f"if its parts run one after the other, name them: stages=[{text}], head='... {last}', where mean, flatten, "
        "token 0 and permute are steps too; else write a StagedModel, which takes five lines (docs/guides/models.md)"
    )


Made = tuple[TracedCode, list[Crossing], list[tuple[Reached, Reached]]]
"""The parts' code, the cuts, and what each part reaches."""


def _probed(
    made: Made, net: nn.Module, stages: int | Sequence[str] | None, classifiers: list[str], image: Image
) -> tuple[Made, list[Shape | None]]:
    """A cut where tokens stand on a grid, as far as there is one, and the shapes that a probe has found there."""

    def probe(code: TracedCode) -> list[Shape | None]:
        trace = Trace(net, code.points, classifiers, image, training=False)
        return by_probe(trace, trace.crossings(code.points, code.behind))

    code, cuts, _ = made
    if all(len(cut.shape) != 2 for cut in cuts):
        return made, []
    seen = probe(code)
    if any(shape is None and len(cut.shape) == 2 for shape, cut in zip(seen, cuts, strict=True)):
        if isinstance(stages, Sequence):  # somebody has named them
            return made, seen
        try:
            made = _cut(net, stages, classifiers, image, by_probe)
        except TraceError:  # the proof will tell what is wrong with the cut that there is
            return made, seen
        seen = probe(made[0])
    behind = [shape.prefix_tokens if shape and shape.behind else 0 for shape in seen]
    if any(behind):
        code = TracedCode(made[0].points, classifiers, behind)
        made = (code, *code.make(net, image))
    return made, seen


def _cut(
    net: nn.Module,
    stages: int | Sequence[str] | None,
    classifiers: list[str],
    image: Image,
    read: Reader = by_size,
) -> Made:
    def at(points: Sequence[str]) -> Made:
        code = TracedCode(points, classifiers)
        cuts, reached = code.make(net, image)
        no_weight_twice(net, reached)
        return code, cuts, reached

    if isinstance(stages, Sequence):
        return at(_known(net, stages))
    count = stages

    def anywhere(pyramid: bool = False) -> Made:
        try:
            return at(found(net, classifiers, image, count, pyramid, read))
        except SharedWeightError as error:
            try:
                return at(found(net, classifiers, image, count, pyramid, read, apart=True))
            except TraceError as other:  # its step may help, for it names the places that there are
                raise TraceError(error.reason, error.place, other.step or error.step) from error

    points = from_feature_info(net) if count is None and read is by_size else None
    if points is None:
        return anywhere()
    try:
        return at(points)
    except TraceError as error:  # some name places inside a block, where two branches run
        try:
            return anywhere(pyramid=True)
        except TraceError as other:  # its step names places that there are
            raise TraceError(error.reason, error.place, other.step or error.step) from None


def _known(net: nn.Module, names: Sequence[str]) -> list[str]:
    existing = [n for n, _ in net.named_modules() if n]
    for name in names:
        if name not in existing:
            raise TraceError(
                f"stages: no module {name!r} to cut behind{nearest(name, existing)}",
                step="name the modules that end the stages, the last of them in front of the head",
            )
    return list(names)


def _shape(cut: Crossing, layout: str | Sequence[str] | None, i: int, image: Image, net: nn.Module) -> Shape:
    name, sizes = cut.name, cut.shape
    own = layout if isinstance(layout, str) or layout is None else layout[i]
    if own in ("NCHW", "NHWC") and len(sizes) == 3:
        return Shape(own, sizes[0] if own == "NCHW" else sizes[2], sizes[1:] if own == "NCHW" else sizes[:2])
    shape = read_shape(sizes, image, net, name)
    if shape is None or own not in (None, shape.layout):
        text = "x".join(map(str, sizes))
        raise TraceError(
            f"behind {name!r} a tensor of {text} per image crosses, which is {'open' if own is None else f'no {own}'}",
            cut.line,
            step="set layout to 'NCHW' or 'NHWC' if it is a map, or cut elsewhere with stages=[...]",
        )
    return shape


def _not_guessed(
    shapes: Sequence[Shape], cuts: Sequence[Crossing], seen: Sequence[Shape | None], known: Set[Any]
) -> None:
    """One stage's number of tokens alone says nothing of prefix tokens: a probe, another stage or the network does."""
    numbers = [shape.prefix_tokens for shape in shapes if shape.layout == "NLC"]
    for i, (shape, cut) in enumerate(zip(shapes, cuts, strict=True)):
        if i < len(seen) and seen[i] is not None:
            continue
        if shape.layout == "NLC" and shape.prefix_tokens not in known and numbers.count(shape.prefix_tokens) < 2:
            (h, w), more = shape.grid, shape.prefix_tokens
            if i < len(seen):
                raise TraceError(
                    f"behind {cut.name!r} {h * w + more} tokens cross, and none is that of a patch of the image",
                    cut.line,
                    step="cut before tokens are merged or moved, with stages=[...]",
                )
            what = f"behind {cut.name!r} {h * w + more} tokens cross; that they are {h}x{w} and {more} more"
            why = f"would be a guess, for no other stage has {more}"
            step = f"set prefix_tokens={more} if so, or cut where tokens stand on a grid"
            raise TraceError(f"{what} {why}", cut.line, step)


def _left(net: nn.Module, reached: list[tuple[Reached, Reached]]) -> set[str]:
    """Names of the tensors that no part reaches: they belong to the head, so that every tensor is in one part."""
    reachable = {id(tensor) for names in reached for _, tensor in held(net, *names)}
    return {name for name, t in (*net.named_parameters(), *net.named_buffers()) if id(t) not in reachable}
