"""The proof that a model's stages and head compute exactly what the untouched model computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import FBTError, one_line
from ..randomness import seeded
from .classifier_input import features_problem
from .knowledge import Knowledge
from .map_order import probe_maps
from .places import files_of, place_of
from .token_order import probe_tokens
from .weightless import whole_copy


class Split(Protocol):
    """A network and its cut: what of a :class:`StagedModel` the proof looks at."""

    name: str
    net: nn.Module
    in_chans: int
    feature: str
    guessed: bool

    @property
    def stages(self) -> nn.ModuleList: ...

    @property
    def head(self) -> nn.Module: ...

    def knowledge(self, images: Tensor, needs: Iterable[int] = ()) -> Knowledge: ...

    @property
    def writes(self) -> Any: ...

    def stage_outputs(self, images: Tensor, needs: Iterable[int]) -> dict[int, Tensor]: ...

    def specs_at(self, image_size: tuple[int, int]) -> list[Any]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def train(self, mode: bool = True) -> Any: ...


class SplitError(FBTError):
    """Stages and head are not the model they were cut from."""


class CannotRunError(SplitError):
    """The network, or its row of stages, raises something: then nothing can be compared."""


@dataclass(frozen=True)
class SplitProof:
    """What was compared, bit for bit, between stages + head and the untouched model.

    Attributes:
        model: its name.
        image_size: (height, width) in pixels.
        batch_sizes: at which the outputs in eval mode were equal.
        gradients: number of parameters whose gradients in train mode were equal.
        buffers: number of buffers that were equal after each step.
        parameters: number of parameters, each of which is in exactly one stage or the head; a buffer may be in several
            where nothing ever changes it.
        steps: of training, after each of which all that was equal, and outputs in eval mode after the last.
        stages: whose output was kept, and was what the stage gives alone.
        features: whether they were held against the input of the last linear layer, and its gradient; an encoder's
            are what its network gives.
        tokens: number of stages of tokens whose place was probed.
    """

    model: str
    image_size: tuple[int, int]
    batch_sizes: tuple[int, ...]
    gradients: int
    buffers: int
    parameters: int
    steps: int
    stages: int
    features: bool
    tokens: int


_BATCHES = (2, 3)
_STEPS = 2
_ITSELF = "the network disagrees with itself, so no cut can be compared with it"
CLASSIFIER = "classifier"
"""What ``StagedModel.feature`` says of features that are the input of the last linear layer."""

Run = Callable[[Split, Tensor], Tensor]


@torch.enable_grad()  # whatever its caller does with the model
def prove(model: Split, image_size: tuple[int, int], seed: int = 0) -> SplitProof:
    """Compares ``model.stages`` and ``model.head`` with ``model.net`` on perturbed copies.

    The network is first compared with itself: what draws random numbers in eval mode, or remembers its last images,
    could be compared with nothing. Then come outputs in eval mode, two steps of training and eval mode once more; what
    is kept of each stage is compared with what the stage gives. The weights are perturbed because a zero-initialised
    gain would hide whatever stands behind it.

    Raises:
        SplitError: naming the first thing that differs.
    """
    _ = model.writes  # found out now, for all copies
    with seeded(seed):
        net, parts = _perturbed_twins(model, image_size, seed)
        buffers = {name: buffer.clone() for name, buffer in net.net.named_buffers()}
        features = _eval_mode(net, parts, image_size, seed)
        try:
            gradients = _training(net, of_net, parts, of_parts, image_size, seed)
        except CannotRunError:
            raise
        except SplitError as error:
            _disagrees_in_training(model, image_size, seed, error)
            raise
        fixed = {n for n, buffer in net.net.named_buffers() if n in buffers and torch.equal(buffer, buffers[n])}
        parameters = _each_once(parts, fixed)
        specs = model.specs_at(image_size)
        tokens, misplaced = probe_tokens(model, specs, image_size)
        if problem := misplaced or (probe_maps(model, specs, image_size) if model.guessed else ""):
            raise SplitError(f"{model.name}: {problem}")
    stages = len(model.stages)
    return SplitProof(
        model.name, image_size, _BATCHES, gradients, len(buffers), parameters, _STEPS, stages, features, tokens
    )


def of_net(model: Split, images: Tensor) -> Tensor:
    """Logits (an encoder's features) of the untouched network."""
    with _fault(model, "the network itself"):
        out = model.net(images.clone())  # a network may change its images
        return getattr(out, "logits", out)  # transformers gives it with other outputs


def of_parts(model: Split, images: Tensor) -> Tensor:
    """Logits (an encoder's features) of stages and head.

    Raises:
        SplitError: if what is kept of a stage is not what it gives.
    """
    given: list[Tensor] = []
    hooks = [s.register_forward_hook(lambda m, args, out: given.append(out.detach().clone())) for s in model.stages]
    try:
        known = model.knowledge(images.clone(), range(1, len(hooks) + 1))
    finally:
        for hook in hooks:
            hook.remove()
    for number, output in enumerate(given, 1):
        if not torch.allclose(known.stages[number], output, 0, 0, equal_nan=True):
            what = f"what is kept of stage {number} is not what the stage gives: something behind it overwrites it"
            raise SplitError(f"{model.name}: {what} in place where no operator shows it; use inplace=False there")
    return known.output


def _eval_mode(net: Split, parts: Split, image_size: tuple[int, int], seed: int) -> bool:
    """Compares logits, and features with the classifier's input; whether there were any to compare with."""
    net.train(False), parts.train(False)
    draw = _images(parts, image_size, seed)
    batches = [next(draw)(batch) for batch in _BATCHES]
    with torch.no_grad():
        expected = [of_net(net, images) for images in batches]
        again = of_net(net, batches[0])
        if not _same(expected[0], again):
            what = (
                f"for the same images its logits in eval mode {_differ(expected[0], again)} from one call to the next"
            )
            reason = "it draws random numbers in eval mode, or remembers other images (spiking neurons, observers)"
            raise SplitError(f"{net.name}: {_ITSELF}: {what}; {reason}")
        for images, logits in zip(batches, expected, strict=True):
            _equal(net, "logits in eval mode", logits, of_parts(parts, images))
        x = _each_alone(parts, batches[0], next(draw)(_BATCHES[0]))
    if parts.feature != CLASSIFIER:
        return False
    with torch.no_grad():
        if parts.head(x.clone()).logits is None:  # its features are what was compared
            return True
    if all(logits.shape[1] > 1 and _are_probabilities(logits) for logits in expected):
        what = "its outputs in eval mode are probabilities, which add up to 1, and losses take logits"
        raise SplitError(f"{parts.name}: {what}: leave out the softmax at the end of its forward")
    with _fault(parts, "the backward pass of its head"):
        held, problem = features_problem(parts.head, x)
    if problem:
        raise SplitError(f"{parts.name}: {problem}")
    return held


def _are_probabilities(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all() and (outputs.double().sum(1) - 1).abs().max() < 1e-3)


def _each_alone(parts: Split, images: Tensor, others: Tensor) -> Tensor:
    """The output of the last stage; each part must give the same when other images have been there in between.

    Raises:
        SplitError: if one takes more from those before it than the tensor that it is given.
    """
    count = len(parts.stages)
    kept = parts.stage_outputs(images.clone(), range(1, count + 1))
    rest = [*((f"stage {n}", parts.stages[n - 1], kept[n - 1], kept[n]) for n in range(2, count + 1))]
    rest.append(("the head", parts.head, kept[count], parts.head(kept[count].clone()).output))
    for name, part, given, expected in rest:
        parts.stage_outputs(others.clone(), (count,))
        again = part(given.clone())
        again = again.output if isinstance(again, Knowledge) else again
        if not torch.allclose(expected, again, 0, 0, equal_nan=True):
            what = f"{name} gives something else for the same input once other images were in the stages before it"
            reason = "it looks at something that these have left in an attribute, and a stage is given one tensor only"
            raise SplitError(f"{parts.name}: {what}: {reason}")
    return kept[count]


def _training(left: Split, run_left: Run, right: Split, run_right: Run, image_size: tuple[int, int], seed: int) -> int:
    """Compares two models that take the same steps, then their logits in eval mode; the number of gradients."""
    draw, gradients, counted = _images(left, image_size, seed + 1), 0, [_plain_state(left.net)]
    for step in range(1, _STEPS + 1):
        images = next(draw)(4 if step == 1 else 2)
        expected, found = (_train_step(m, run, images, seed) for m, run in ((left, run_left), (right, run_right)))
        when = "in train mode" if step == 1 else f"in step {step} of training"
        for name, tensor in expected.items():
            reason = _BUFFERS if name.startswith("buffer ") else ""
            _equal(left, f"{name} {when}", tensor, found.get(name), reason)
        for (name, own), other in zip(left.net.named_parameters(), right.net.parameters(), strict=True):
            _equal(left, f"{name} {when}, which the network writes to as it runs,", own.detach(), other.detach())
        gradients = sum(1 for k, v in expected.items() if k.startswith("gradient of ") and v is not None)
        counted.append(_plain_state(left.net))
    stages = _plain_state(right.net)
    *_, once, twice = counted
    for name, value in twice.items():
        if once.get(name) != value != stages.get(name):
            what = f"{name} of the network changes with each step of training ({once.get(name)}, then {value})"
            reason = f"with stages and head it stays {stages.get(name, 'unset')}: keep it in a buffer of a layer"
            raise SplitError(f"{left.name}: {what}; {reason}, since a cut takes no part in what Python remembers")
    left.train(False), right.train(False)
    images = next(draw)(2)
    with torch.no_grad():
        what = f"logits in eval mode after {_STEPS} steps of training"
        _equal(left, what, run_left(left, images), run_right(right, images))
    return gradients


def _disagrees_in_training(model: Split, image_size: tuple[int, int], seed: int, error: SplitError) -> None:
    """Blames the network where it differs in training from an untouched copy of itself."""
    one, other = _perturbed_twins(model, image_size, seed)
    try:
        _training(one, of_net, other, of_net, image_size, seed)
    except SplitError as own:
        reason = str(own).removeprefix(f"{model.name}: ")
        what = f"{_ITSELF}: of two copies that are trained on the same images under one seed, {reason}"
        raise SplitError(f"{model.name}: {what}") from error


def _images(model: Split, image_size: tuple[int, int], seed: int) -> Iterator[Callable[[int], Tensor]]:
    """Functions that draw so many images."""
    generator = torch.Generator().manual_seed(seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    while True:
        yield lambda batch: torch.randn(batch, model.in_chans, *image_size, generator=generator).to(device)


@contextmanager
def _fault(model: Split, whose: str) -> Iterator[None]:
    """Says whose code raised something: what the untouched network raises by itself is no fault of a cut."""
    try:
        yield
    except FBTError:
        raise
    except Exception as error:  # it is anyone's code
        place = place_of(error, files_of(model.net))
        at = f" ({place}); mend it, or prove it with images and on a device that it is made for" if place else ""
        raise CannotRunError(f"{model.name}: {whose} cannot be run: {one_line(error)}{at}") from error


NOISE = (0.1, 0.03, 0.01)
"""Deviations of what is added to weights; some networks overflow with the larger ones."""


def _perturbed_twins(model: Split, image_size: tuple[int, int], seed: int) -> tuple[Split, Split]:
    """Two equal copies with noise added to all weights, as much as leaves the network's outputs finite."""
    model = whole_copy(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train(False)
    net, generator = model.net, torch.Generator().manual_seed(seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    tensors = [*net.parameters(), *net.buffers()]
    own = [tensor.detach().clone() for tensor in tensors]
    for noise in NOISE:
        with torch.no_grad():
            for tensor, value in zip(tensors, own, strict=True):
                tensor.copy_(value)
            for parameter in net.parameters():
                parameter.add_(noise * torch.randn(parameter.shape, generator=generator).to(parameter))
            for buffer in net.buffers():
                if buffer.is_floating_point():  # scaled, so that variances stay positive
                    buffer.mul_(1 + 0.1 * torch.rand(buffer.shape, generator=generator).to(buffer))
            images = torch.randn(2, model.in_chans, *image_size, generator=generator).to(device)
            if of_net(whole_copy(model), images).isfinite().all():  # parts find nothing that the network has left
                return model, whole_copy(model)
    raise SplitError(f"{model.name}: its outputs are not finite, so nothing can be compared")


def _train_step(model: Split, run: Run, images: Tensor, seed: int) -> dict[str, Tensor | None]:
    """Logits, gradients and buffers of one forward and backward in train mode, and a small step along the gradients."""
    model.train()
    whose = "the network itself" if run is of_net else "its row of stages and head"
    with seeded(seed), torch.random.fork_rng([images.device] if images.is_cuda else []), _fault(model, whose):
        torch.manual_seed(seed)
        logits = run(model, images)
        weights = torch.linspace(-1, 1, logits.numel(), device=logits.device, dtype=logits.dtype).reshape(logits.shape)
        (logits.log_softmax(-1) * weights).sum().backward()
    result: dict[str, Tensor | None] = {"logits": logits.detach()}
    result |= {f"gradient of {n}": p.grad for n, p in model.net.named_parameters()}
    result |= {f"buffer {n}": b.clone() for n, b in model.net.named_buffers()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.001 * parameter.grad / (parameter.grad.abs().max() + 1e-12))
            parameter.grad = None
    return result


_OF_TORCH = frozenset(vars(nn.Module()))


def _plain_state(net: nn.Module) -> dict[str, Any]:
    """Numbers, texts and what is made of them that the network's modules keep as plain attributes."""
    return {
        f"{path}.{name}" if path else name: repr(value)
        for path, module in net.named_modules()
        for name, value in vars(module).items()
        if name not in _OF_TORCH and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return isinstance(value, bool | int | float | str)


def _same(expected: Tensor, found: Tensor) -> bool:
    return expected.shape == found.shape and torch.equal(expected, found)


def _differ(expected: Tensor, found: Tensor) -> str:
    return f"differ by up to {(expected.double() - found.double()).abs().max().item():.3g}"


_BUFFERS = (
    "; stages run what logits come from, and not what else changes it (a counter in forward, an auxiliary head, "
    "checkpointing): leave that out, or let a layer on the way to the logits do it"
)


def _equal(model: Split, what: str, expected: Tensor | None, found: Tensor | None, reason: str = "") -> None:
    if expected is None or found is None:
        if expected is not found:
            side = "stages and head never reach it" if found is None else "the model itself never reaches it"
            raise SplitError(f"{model.name}: {what}: {side}")
    elif expected.shape != found.shape:
        raise SplitError(f"{model.name}: {what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    elif not torch.equal(expected, found):
        raise SplitError(f"{model.name}: {what} {_differ(expected, found)}{reason}")


def _each_once(model: Split, fixed: Set[str] = frozenset()) -> int:
    """Counts parameters; each, and each buffer that is not fixed, must be in exactly one of the model's parts."""
    for kind in ("parameters", "buffers"):
        reached = Counter(id(t) for part in (*model.stages, model.head) for t in getattr(part, kind)())
        for name, tensor in getattr(model.net, f"named_{kind}")():
            count = reached[id(tensor)]
            if count != 1 and not (count and kind == "buffers" and name in fixed):
                raise SplitError(f"{model.name}: {name} is in {count} of the stages and the head, not in one")
    return len(list(model.net.parameters()))
