"""``type="module"``: anyone's own nn.Module as a StagedModel."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fbt_plugins import ConfigError, Declaration, FBTError, StagedModel, nearest
from fbt_plugins.authoring import (
    Catalogue,
    PartError,
    argument_problems,
    give_logits,
    one_line,
    pixels,
    split_steps,
)

from . import libraries
from .own_inputs import load_and_read
from .places import last_line, place_of
from .traced_cut import cut_by_trace


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
        path: "package.module:factory"; a function or class that returns an nn.Module which maps normalised images to
            logits, or to an object with ``logits``. It is code, as the config is: name only what you trust.
        num_classes: number of logits, handed to the factory if it takes such an argument.
        stages: None for four stages found by tracing; a number of stages; or the names of the modules that end them.
            With ``head``, each stage is the names of all that runs in it, separated by blanks.
        head: names of what runs behind the last stage, the classifier last; nothing is traced then. In both, ``mean``,
            ``flatten``, ``token 0`` and ``permute 0 2 3 1`` are steps too, see :class:`Declaration`.
        checkpoint: file with weights.
        image_size: pixels of the images that the network is made for.
        input_size: pixels that images are resized to before this network.
        in_chans: image channels.
        mean, std: input normalisation; by default none.
        family: "cnn", "attention", "mlp" or "hybrid"; None reads it off what the stages compute.
        layout: of the stages' outputs; None reads it off their sizes ("NCHW" with ``head``).
        prefix_tokens: tokens before the grid's, with ``head`` and layout "NLC"; a trace reads them off the sizes, and
            needs this where one stage alone has them.
        raster: whether tokens come row by row; None takes it that they do, and the proof must find them there. False
            makes no map of them.
        order: "package.module:function"; a function of yours of the network and a grid (h, w) that gives, as a tensor
            (h * w,), which token stands at each position, row by row, where tokens have an order of their own.
        verify: prove the cut when the network is built, which takes a few seconds.
        arguments: of the factory; here it can be given those that are called like ours as well.
        more: further arguments of the factory.

    Raises:
        ConfigError: if the path leads nowhere, the factory refuses its arguments or returns no network, or the network
            cannot be cut.
        SplitError: if stages and head are not the network.
    """
    if twice := sorted(set(arguments or {}) & set(more)):
        raise ConfigError(f"{path}: {twice[0]!r} is given twice, in arguments= and beside it")
    given = {**more, **(arguments or {})}
    net = give_logits(_create(path, num_classes, given))
    plain = {"mean": 0.0, "std": 1.0}
    about: dict[str, Any] = load_and_read(net, path, checkpoint, input_size, mean, std, plain) | dict(
        name=path,
        image_size=pixels(image_size),
        in_chans=in_chans,
        raster=False if order is not None else raster,
        order=None if order is None else _named("order", order),
        family=family,
        arguments={} if num_classes is None else {"num_classes": num_classes, **given},
    )
    if head is None:
        model = cut_by_trace(net, stages, layout=layout, prefix_tokens=prefix_tokens, **about)
    elif stages is None or isinstance(stages, int):
        raise ConfigError(f"{path}: head= comes with stages=[...] that name all that runs in each of them")
    else:
        ends = " ".join(split_steps(row)[-1] for row in stages)
        declaration = Declaration(stem="", units=" ".join(stages), cuts=ends, head=head, layout=layout or "NCHW")  # type: ignore[arg-type]
        model = declaration.cut(net, prefix_tokens=prefix_tokens, **about)
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


def _named(argument: str, path: str) -> Any:
    """The function or class behind "package.module:name"."""
    package, found, attribute = str(path).partition(":")
    if not found or not attribute:
        raise ConfigError(
            f"{argument}: {path!r}: write package.module:{'factory' if argument == 'path' else 'function'}"
        )
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"{argument}: {package!r} cannot be imported ({one_line(error)})") from error
    except Exception as error:
        raise ConfigError(f"{argument}: {package!r} fails when it is imported, {_at(error, '')}") from error
    if not callable(function := getattr(module, attribute, None)):
        raise ConfigError(f"{argument}: {package} has no function {attribute!r}{nearest(attribute, vars(module))}")
    return function


def _file(factory: Any) -> str:
    code = getattr(factory, "__init__" if inspect.isclass(factory) else "__code__", None)
    return getattr(getattr(code, "__code__", code), "co_filename", "")


def _at(error: Exception, file: str) -> str:
    """An exception of somebody else's code, with its place: in the file that was meant, if it went through it."""
    place = place_of(error, [file]) or last_line(error)
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())}"


def _takes_anything(parameters: Any) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())
