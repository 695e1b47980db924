"""Where a network is cut when nobody says so: at its resolutions, or after the field's fractions of equal blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx, nn

from fbt_plugins.authoring import isotropic_ends

from .layouts import Shape
from .shared_weights import spans
from .tokens import Reader, by_size
from .traced import JOIN, Crossing, Image, Trace, all_before
from .tracer import ShallowTracer, TraceError, name_of

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_STEMS = ("stem", "patch_embed")
_STAGES = 4
_NEARLY_ALL = 0.85
_MOST = 0.6
"""Of the weights: where one module holds more than this, a trace looks into it before it cuts around it."""
_HARDLY_ANY = 0.05
"""Of the weights: no stage of a network without a list of blocks has less."""
_DEPTH = 6


def from_feature_info(net: nn.Module) -> list[str] | None:
    """Four points by timm's ``feature_info``: the last module of each of the last four reductions, or equal blocks.

    Returns:
        None where it has none, names modules that are not there, or has too few.
    """
    info: Any = getattr(net, "feature_info", None)
    entries = list(info if isinstance(info, list | tuple) else getattr(info, "info", ()))
    named: list[tuple[str, int]] = []
    for i, entry in enumerate(entries):
        if (name := _module(net, entry["module"], i)) is not None:
            named.append((name, entry["reduction"]))
    if len(named) >= _STAGES and len({reduction for _, reduction in named}) == 1:
        return [named[end - 1][0] for end in isotropic_ends(len(named))]
    last = list({reduction: name for name, reduction in named}.values())
    if len(last) >= _STAGES:
        return last[-_STAGES:]
    if len(named) == len({name for name, _ in named}) == _STAGES:
        return [name for name, _ in named]
    if len(last) == _STAGES - 1:  # three stages: the stem is the first
        stem = next((s for s in _STEMS if isinstance(getattr(net, s, None), nn.Module)), None)
        return [stem, *last] if stem else None
    return None


def _module(net: nn.Module, name: str, i: int) -> str | None:
    """The module that an entry of feature_info means; some name it as a feature extractor would."""
    tail = name.rsplit(".", 1)[-1]
    guesses = [name, *(f"{p}.{tail}" for p in ("stages", "blocks", "layers", "levels")), f"stages.{i}", f"blocks.{i}"]
    existing = {n for n, _ in net.named_modules() if n}
    return next((g for g in guesses if g in existing), next((n for n in existing if n.endswith(f".{name}")), None))


def candidates(
    net: nn.Module, classifiers: Sequence[str], image: Image, descend: Iterable[str] = (), apart: bool = False
) -> tuple[Trace, list[Crossing], str]:
    """Every place behind a module with weights, in the order they run, where one tensor alone crosses.

    Args:
        net: the network.
        classifiers: names of its classifiers.
        image: (C, H, W).
        descend: modules to look into besides lists and sequences of modules.
        apart: leave out places between two uses of one weight.

    Returns:
        The trace, the places, and why the first module that is none was refused, if any was.
    """
    inside = set(descend)
    units: list[str] = []

    def collect(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            full = f"{prefix}{name}"
            holds = any(c == full or c.startswith(f"{full}.") for c in classifiers)
            if type(child) in _CONTAINERS or full in inside or (holds and full not in classifiers):
                collect(child, f"{full}.")
            elif not holds and any(True for _ in child.parameters()):
                units.append(full)

    collect(net, "")
    trace = Trace(net, units, classifiers, image, training=False)
    uses = spans(trace) if apart else []
    found: dict[int, Crossing] = {}
    reason = ""
    for name in units:
        if not trace.runs(name):
            continue
        try:
            crossing = trace.crossing(name)
        except TraceError as error:
            reason = reason or str(error)
            continue
        between = any(first <= crossing.position < last for first, last in uses)
        if len(crossing.shape) in (2, 3) and not between:
            found.setdefault(crossing.position, crossing)
    return trace, [found[position] for position in sorted(found)], reason


def found(
    net: nn.Module,
    classifiers: Sequence[str],
    image: Image,
    stages: int | None = None,
    pyramid: bool = False,
    read: Reader = by_size,
    apart: bool = False,
) -> list[str]:
    """Points found in a trace, which looks deeper where it sees too few.

    Args:
        net: the network.
        classifiers: names of its classifiers.
        image: (C, H, W).
        stages: how many stages of about as many units each; None is four, as the field cuts.
        pyramid: whether stages must end at different resolutions.
        read: tells what crosses at a place; where it does not know, there is no cut.
        apart: no cut between two uses of one weight.

    Raises:
        TraceError: if there are not enough places at which one tensor alone crosses.
    """
    inside: set[str] = set()
    best: list[str] | None = None
    even: list[str] | None = None
    for _ in range(_DEPTH):
        try:
            trace, places, reason = candidates(net, classifiers, image, inside, apart)
        except TraceError:
            if best is None:
                raise
            return best
        read_places = [(p, s) for p, s in zip(places, read(trace, places), strict=True) if s is not None]
        rows = [(place.name, shape) for place, shape in read_places]
        weights = {name: _size(net.get_submodule(name)) for name, _ in rows}
        points = _choose(rows, weights, net, pyramid) if stages is None else _evenly(rows, stages)
        best = points or best
        if not pyramid and len(_by_resolution(rows)) == 1:
            even = even or _by_weights([(p.name, trace.weights_before(p.position)) for p, _ in read_places])
        lump = max(weights, key=weights.__getitem__, default="")
        if points is not None and (
            len(_by_resolution(rows)) >= _STAGES
            or weights[lump] < _MOST * sum(weights.values())
            or not any(net.get_submodule(lump).children())
        ):
            return points
        deeper = _largest(net, inside)
        if deeper is None:
            break
        inside.add(deeper)
    if best or even:  # no list of blocks was found
        return best or even or []
    names = [name for name, _ in rows]
    shown = ", ".join([*names[:12], *(["..."] if len(names) > 12 else [])])
    many = f"{len(names)} module{'s' if len(names) > 1 else ''}: {shown}" if names else "no module"
    why = f"a stage ends where later layers need one tensor only, which is so behind {many}"
    step = f"cut there: stages={min(len(names), 3)}, or name them with stages=[...]" if len(names) > 1 else JOIN
    raise TraceError(f"no {stages or _STAGES} stages are found: {why}{f'; {reason}' if reason else ''}", step=step)


def _by_resolution(rows: list[tuple[str, Shape]]) -> list[list[str]]:
    """The places of each resolution, in the order they run; what is pooled to one position is none."""
    groups: dict[int, list[str]] = {}
    for name, shape in rows:
        size = shape.grid[0] * shape.grid[1]
        if size > 1 or not groups:
            groups.setdefault(size, []).append(name)
    return list(groups.values())


def _choose(rows: list[tuple[str, Shape]], weights: dict[str, int], net: nn.Module, pyramid: bool) -> list[str] | None:
    """The last module of each of the last four resolutions; or equal blocks, where nearly all weights are in them."""
    groups = _by_resolution(rows)
    if not groups:
        return None
    blocks = _blocks(groups[-1], net)
    held = sum(size for name, size in weights.items() if any(_is_in(name, member) for member in blocks))
    equal = len(blocks) >= _STAGES and held > _NEARLY_ALL * sum(weights.values())
    if (equal or (len(groups) == 1 and len(blocks) >= _STAGES)) and not pyramid:
        ends = list(blocks.values())
        return [ends[end - 1] for end in isotropic_ends(len(ends))]
    if len(groups) >= _STAGES:
        return [names[-1] for names in groups][-_STAGES:]
    if pyramid or len(groups) == 1:
        return None
    pieces = list(groups)
    while len(pieces) < _STAGES:
        longest = max(range(len(pieces)), key=lambda i: len(pieces[i]))
        names = pieces[longest]
        if len(names) == 1:
            return None
        pieces[longest : longest + 1] = [names[: len(names) // 2], names[len(names) // 2 :]]
    return [names[-1] for names in pieces]


def _blocks(places: list[str], net: nn.Module) -> dict[str, str]:
    """The members of the list that holds most of the weights, each with the last place in it.

    A block may be a module, or a list of modules that the network adds up by itself (attention, then a feed-forward
    layer). What is much smaller than the others at either end of the list, an embedding or a norm, is no block.
    """
    lists: dict[str, dict[str, str]] = {}
    for place in places:
        parts = place.split(".")
        for depth in range(len(parts)):
            parent = ".".join(parts[:depth])
            if parent or type(net) in _CONTAINERS:
                lists.setdefault(parent, {})[".".join(parts[: depth + 1])] = place
    best: dict[str, str] = {}
    most = 0
    for members in lists.values():
        sizes = [_size(net.get_submodule(member)) for member in members]
        usual = sorted(sizes)[len(sizes) // 2]
        big = [i for i, size in enumerate(sizes) if 2 * size >= usual]
        blocks = dict(list(members.items())[big[0] : big[-1] + 1])
        held = sum(sizes[big[0] : big[-1] + 1])
        if len(blocks) >= _STAGES and held > most:
            best, most = blocks, held
    return best


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _is_in(name: str, member: str) -> bool:
    return name == member or name.startswith(f"{member}.")


def _evenly(rows: list[tuple[str, Shape]], stages: int) -> list[str] | None:
    names = [name for name, _ in rows]
    if not 2 <= stages <= len(names):
        return None
    return [names[-(-len(names) * (i + 1) // stages) - 1] for i in range(stages)]


def _by_weights(places: list[tuple[str, int]]) -> list[str] | None:
    """Four of some places, with the weights in front of each, at about a quarter of the weights each.

    Returns:
        None where one of the stages would have hardly any.
    """
    chosen: list[tuple[str, int]] = []
    for quarter in range(1, _STAGES):
        wanted = places[-1][1] * quarter / _STAGES
        open_ = [place for place in places[:-1] if place not in chosen]
        if not open_:
            return None
        chosen.append(min(open_, key=lambda place: abs(place[1] - wanted)))
    ends = [*chosen, places[-1]]
    sizes = [end[1] - before for end, before in zip(ends, [0, *(end[1] for end in chosen)], strict=True)]
    return [name for name, _ in ends] if min(sizes) > _HARDLY_ANY * ends[-1][1] else None


def _largest(net: nn.Module, inside: set[str]) -> str | None:
    """The module not yet looked into that holds most of the parameters."""
    sizes: dict[str, int] = {}
    for name, module in net.named_modules():
        parent = name.rpartition(".")[0]
        visible = not parent or parent in inside or type(net.get_submodule(parent)) in _CONTAINERS
        if name and visible and name not in inside and type(module) not in _CONTAINERS and any(module.children()):
            sizes[name] = _size(module)
    return max(sizes, key=sizes.__getitem__, default=None)


def _linear(name: str, module: nn.Module) -> str:
    """The one linear layer of a classifier that is more than that, such as LeViT's with its norm; else itself."""
    inside = [n for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return f"{name}.{inside[0]}" if len(inside) == 1 and inside[0] else name


def _no_weights_behind(net: nn.Module, nodes: Sequence[fx.Node], last: fx.Node) -> None:
    """Refuses a network that makes its logits of what its last layer gives by a matrix of weights of its own."""
    weights = {name for name, parameter in net.named_parameters() if parameter.ndim > 1}
    behind = {last}
    for node in nodes:
        if behind.isdisjoint(node.all_input_nodes):
            continue
        behind.add(node)
        others = all_before(i for i in node.all_input_nodes if not i.meta["pixels"])
        used = [n for n in others if n.op == "get_attr" and name_of(n) in weights]
        if used:
            raise TraceError(
                f"it makes its logits of what {name_of(last)} gives by {name_of(used[0])}, which is no layer",
                node.meta["line"],
                step="multiply by an nn.Linear there, whose input are the features",
            )


def classifiers_of(net: nn.Module, image: Image) -> list[str]:
    """Names of a network's classifiers: timm's ``get_classifier()``, else the last layer with weights that runs.

    Raises:
        TraceError: if the network cannot be traced, or that layer is neither linear nor a convolution.
    """
    names = {id(module): name for name, module in net.named_modules()}
    if hasattr(net, "get_classifier"):
        own: Any = net.get_classifier()  # type: ignore[operator]
        own = list(own) if isinstance(own, tuple | list | nn.ModuleList) else [own]
        if all(id(module) in names and any(True for _ in module.parameters()) for module in own):
            return [_linear(names[id(module)], module) for module in own]
    inside: set[str] = set()
    while True:
        nodes = list(ShallowTracer(net, inside, image, training=False).run().nodes)
        ran = [name_of(n) for n in nodes if n.op == "call_module"]
        with_weights = [name for name in ran if any(True for _ in net.get_submodule(name).parameters())]
        if not with_weights:
            raise TraceError("no layer with weights runs that could be its classifier")
        last = with_weights[-1]
        node = next(n for n in reversed(nodes) if n.op == "call_module" and name_of(n) == last)
        module = net.get_submodule(last)
        if isinstance(module, nn.Linear | nn.Conv2d):
            _no_weights_behind(net, nodes, node)
            return [last]
        if not any(True for _ in module.children()):
            raise TraceError(
                f"its last layer with weights, {last}, is no linear one: it has no classifier",
                node.meta["line"],
                step="give it one, or take it with num_classes=0 as an encoder, whose output is its features",
            )
        inside |= {last, *(f"{last}.{n}" for n, child in module.named_modules() if type(child) in _CONTAINERS and n)}
