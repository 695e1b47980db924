"""``type="module"``: anyone's own nn.Module as a StagedModel."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fbt_plugins import ConfigError, Declaration, FBTError, StagedModel, nearest
from fbt_plugins.authoring import (
    Catalogue,
    InHand,
    PartError,
    argument_problems,
    give_features,
    give_logits,
    last_line,
    one_line,
    pixels,
    place_of,
    split_steps,
)

from . import libraries
from .own_inputs import load_and_read
from .traced_cut import cut_by_trace

_PLAIN = {"mean": 0.0, "std": 1.0}


def build_module(
    path: str,
    num_classes: int | None = None,
    stages: int | Sequence[str] | None = None,
    head: str | None = None,
    checkpoint: str | None = None,
    image_size: int | Sequence[int] = 224,
    input_size: int | Sequence[int] | None = None,
    in_chans: int = 3,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    family: str | None = None,
    layout: str | Sequence[str] | None = None,
    prefix_tokens: int = 0,
    raster: bool | None = None,
    order: str | None = None,
    verify: bool = True,
    arguments: Mapping[str, Any] | None = None,
    **more: Any,
) -> StagedModel:
    """Calls a function of yours that makes a network, cuts it, and proves the cut.

    Args:
        path: "package.module:factory" or "FILE.py:factory": a function or class that returns an nn.Module. The module
            maps normalised images to logits (of an encoder, to features), or to an object that has them. It is code,
            as the config is: name only what you trust.
        num_classes: number of logits, handed to the factory if it takes such an argument. 0 says that the network has
            no classifier: its output is features (N, D), or maps or tokens, whose mean over all positions they are, or
            an object with ``pooler_output`` or ``last_hidden_state``.
        stages: None for four stages found by tracing; a number of stages; or the names of the modules that end them.
            With ``head``, each stage is the names of all that runs in it, separated by blanks.
        head: names of what runs behind the last stage, a classifier last; nothing is traced then. In both, ``mean``,
            ``flatten``, ``token 0`` and ``permute 0 2 3 1`` are steps too, see :class:`Declaration`.
        checkpoint: file with weights.
        image_size: pixels of the images that the network is made for.
        input_size: pixels that images are resized to before this network.
        in_chans: channels of an image.
        mean, std: input normalisation; by default none.
        family: "cnn", "attention", "mlp" or "hybrid"; None reads it off what the stages compute.
        layout: layout of the stages' outputs; None reads it off their sizes ("NCHW" with ``head``).
        prefix_tokens: tokens before the grid's, with ``head`` and layout "NLC"; a trace finds them by itself, and needs
            this where ``raster`` is given and one stage alone has them.
        raster: whether tokens come row by row; None finds the grid by a probe, and the proof must find it too. True and
            False read it off the sizes, and False makes no map of it.
        order: "package.module:function"; a function of yours of the network and a grid (h, w) that gives, as a tensor
            (h * w,), which token stands at each position, row by row, where tokens have an order of their own.
        verify: prove the cut when the network is built, which takes a few seconds.
        arguments: arguments of the factory that are called like one of these keys.
        more: further arguments of the factory.

    Raises:
        ConfigError: if the path leads nowhere, the factory refuses its arguments or returns no network, or the network
            cannot be cut.
        SplitError: if stages and head are not the network.
    """
    if twice := sorted(set(arguments or {}) & set(more)):
        raise ConfigError(f"{path}: {twice[0]!r} is given twice, in arguments= and beside it")
    given = {**more, **(arguments or {})}
    encoder = num_classes == 0
    net = _create(path, num_classes, given)
    net = give_features(without_empty_classifiers(net)) if encoder else give_logits(net)
    about: dict[str, Any] = load_and_read(net, path, checkpoint, input_size, mean, std, _PLAIN) | dict(
        name=path,
        image_size=pixels(image_size),
        in_chans=in_chans,
        raster=False if order is not None else raster,
        order=None if order is None else _named("order", order),
        family=family,
        arguments={} if num_classes is None else {"num_classes": num_classes, **given},
    )
    return _cut(net, stages, head, layout, prefix_tokens, verify, encoder, **about)


def module_in_hand(
    net: nn.Module,
    image_size: int | Sequence[int] | None = None,
    stages: int | Sequence[str] | None = None,
    head: str | None = None,
    input_size: int | Sequence[int] | None = None,
    in_chans: int = 3,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    family: str | None = None,
    layout: str | Sequence[str] | None = None,
    prefix_tokens: int = 0,
    raster: bool | None = None,
    order: Callable[[nn.Module, tuple[int, int]], Tensor] | None = None,
    verify: bool = True,
    encoder: bool = False,
) -> StagedModel:
    """Cuts anyone's network, and proves the cut; the arguments are those of :func:`build_module`.

    Args:
        image_size: pixels of the images; None is 224.
        order: the function itself.
        encoder: it has no classifier, and answers with features (N, D).
    """
    name = type(net).__name__
    about: dict[str, Any] = load_and_read(net, name, None, input_size, mean, std, _PLAIN) | dict(
        name=name,
        image_size=pixels(image_size or 224),
        in_chans=in_chans,
        raster=False if order is not None else raster,
        order=order,
        family=family,
    )
    return _cut(net, stages, head, layout, prefix_tokens, verify, encoder, **about)


build_module.in_hand = InHand(module_in_hand)  # type: ignore[attr-defined]


def _cut(
    net: nn.Module,
    stages: int | Sequence[str] | None,
    head: str | None,
    layout: str | Sequence[str] | None,
    prefix_tokens: int,
    verify: bool,
    encoder: bool,
    **about: Any,
) -> StagedModel:
    if head is None:
        model = cut_by_trace(net, stages, layout=layout, prefix_tokens=prefix_tokens, encoder=encoder, **about)
    elif stages is None or isinstance(stages, int):
        raise ConfigError(f"{about['name']}: head= comes with stages=[...] that name all that runs in each of them")
    else:
        ends = " ".join(split_steps(row)[-1] for row in stages)
        declaration = Declaration(stem="", units=" ".join(stages), cuts=ends, head=head, layout=layout or "NCHW")  # type: ignore[arg-type]
        model = declaration.cut(net, prefix_tokens=prefix_tokens, encoder=encoder, **about)
    try:
        if verify and not next(net.parameters()).is_meta:
            model.verify()
        model.specs_at(model.image_size)
    except PartError as error:  # the network is the user's, not a plugin's
        raise ConfigError(str(error)) from error
    return model


build_module.catalogue = Catalogue(libraries.names, str, libraries.config)  # type: ignore[attr-defined]


def _create(path: str, num_classes: int | None, arguments: dict[str, Any]) -> nn.Module:
    factory = _named("path", path)
    parameters = inspect.signature(factory).parameters
    if num_classes is not None and ("num_classes" in parameters or _takes_anything(parameters)):
        arguments = {"num_classes": num_classes, **arguments}
    if problems := argument_problems(factory, arguments, path):
        raise ConfigError(problems)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # of 0 classes
            net = factory(**arguments)
    except FBTError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{path}: its factory fails, {_at(error, _file(factory))}; mend it, or give it other arguments"
        ) from error
    if not isinstance(net, nn.Module):
        raise ConfigError(f"path: {path} returns a {type(net).__name__}, not an nn.Module")
    return net


def without_empty_classifiers(net: nn.Module) -> nn.Module:
    """A network that was made for 0 classes, without the layers of 0 outputs that it may have got for them."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == 0 and name:
            parent, _, last = name.rpartition(".")
            setattr(net.get_submodule(parent), last, nn.Identity())
    return net


def _named(argument: str, path: str) -> Any:
    """The function or class behind "package.module:name" or "FILE.py:name"."""
    package, found, attribute = str(path).rpartition(":")
    if not found or not attribute:
        raise ConfigError(
            f"{argument}: {path!r}: write package.module:{'factory' if argument == 'path' else 'function'}"
        )
    try:
        module = _file_as_module(Path(package)) if package.endswith(".py") else importlib.import_module(package)
    except (ImportError, FileNotFoundError) as error:
        raise ConfigError(f"{argument}: {package!r} cannot be imported ({one_line(error)})") from error
    except Exception as error:
        raise ConfigError(f"{argument}: {package!r} fails when it is imported, {_at(error, '')}") from error
    if not callable(function := getattr(module, attribute, None)):
        raise ConfigError(f"{argument}: {package} has no function {attribute!r}{nearest(attribute, vars(module))}")
    return function


def _file_as_module(file: Path) -> Any:
    """A file that need not be where Python looks for modules; what it imports may lie beside it. It is run once."""
    file = file.expanduser().resolve()
    name = f"fbt_file_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _file(factory: Any) -> str:
    code = getattr(factory, "__init__" if inspect.isclass(factory) else "__code__", None)
    return getattr(getattr(code, "__code__", code), "co_filename", "")


def _at(error: Exception, file: str) -> str:
    """An exception of somebody else's code, with its place: in the file that was meant, if it went through it."""
    place = place_of(error, [file]) or last_line(error)
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())}"


def _takes_anything(parameters: Any) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())
