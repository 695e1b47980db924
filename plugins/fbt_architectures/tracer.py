"""A shallow trace of a network's forward pass: what runs in which order, between modules that are taken whole.

Only the network and the modules that hold a cut are looked into; all else is a leaf. Every value carries its shape from
a run on the meta device, so that sizes of images and grids are plain numbers while the batch stays open.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict

from fbt_plugins import ConfigError, FBTError
from fbt_plugins.authoring import Shortened, calling, features_of, files_of, logits_of, meta_copy, place_of

from .autocast_regions import AutocastRegions, NoGrad
from .in_place import augmented
from .leaf_functions import leaf_functions

BATCH = 4099
"""Batch size on the meta device: a prime that no width or grid is a multiple of."""

ROOT = "net"
"""Name of the network in the traced code: ``self.net.layer1(x)``."""


def name_of(node: fx.Node) -> str:
    """The network's own name of the module or tensor that a node of a trace stands for."""
    return str(node.target).removeprefix(f"{ROOT}.")


class TraceError(ConfigError):
    """A network that cannot be traced or cut.

    Args:
        reason: why not.
        place: the network's own line that is meant, "nets.py:12", if it is known.
        step: what to do next, if there is something better than to name all that runs.
    """

    def __init__(self, reason: str, place: str = "", step: str = "") -> None:
        self.reason, self.place, self.step = reason, place, step
        super().__init__(reason + (f" ({place})" if place else ""))


def val(node: fx.Node) -> Any:
    """What a node stands for, on the meta device."""
    return node.meta["val"]


def values_of(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node whose values it reads: of a tensor it may look at the dtype or at the device only."""
    if node.op == "call_function" and node.target is getattr and node.args[1:] == ("dtype",):
        return []
    if node.op == "call_method" and node.target in LIKE:
        return [node.args[0]] if isinstance(node.args[0], fx.Node) else []
    return node.all_input_nodes


_VALUES = re.compile(
    r"(aten::\w+)\W.* Meta|(Tensor\.item)\(\) .* meta|register_meta .*(torch\.\w+)\(\) raises", re.DOTALL
)
"""What torch says of an operator that the meta device has none of, since its result depends on values."""

LIKE = ("to", "type_as")
"""Methods that take another tensor's dtype and device."""


class _Traced(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Proxy(fx.Proxy):
    """A value that knows its shape. Batch sizes, and what is computed from them, are the only numbers among them."""

    tracer: ShallowTracer  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        value = val(self.node)
        if isinstance(value, Tensor):
            if name == "shape":
                return self.tracer.shape(self)
            if name == "size":
                return lambda dim=None: self.tracer.shape(self) if dim is None else self.tracer.shape(self)[dim]
            if name in ("dim", "ndimension"):
                return lambda: value.ndim
            if name == "device":
                return self.tracer.device
            if name in ("ndim", "requires_grad", "is_cuda", "is_sparse", "is_quantized", "layout", "is_nested"):
                return getattr(value, name)
            if name == "dtype" or (hasattr(value, name) and not callable(getattr(value, name))):
                return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __iter__(self) -> Iterator[Any]:
        value = val(self.node)
        length = self.tracer.shape(self)[0] if isinstance(value, Tensor) else len(value)
        if isinstance(length, fx.Proxy):
            raise TraceError("it loops over the images of a batch")
        return iter([self[i] for i in range(length)])  # type: ignore[index]

    def __len__(self) -> int:
        value = val(self.node)
        length = self.tracer.shape(self)[0] if isinstance(value, Tensor) else len(value)
        if isinstance(length, fx.Proxy):
            raise TraceError("it asks for len() of a batch")
        return length

    def __bool__(self) -> bool:
        raise TraceError("what it does depends on the batch size or on values of a tensor")

    def __index__(self) -> int:
        raise TraceError("it uses the batch size where a trace cannot follow")


augmented(_Proxy)


class ShallowTracer(fx.Tracer):
    """Traces a network once, for one image size and one mode.

    Args:
        net: the network; it is not touched.
        descend: names of the modules to look into.
        image: (C, H, W) of one image.
        training: which mode.
    """

    def __init__(self, net: nn.Module, descend: Iterable[str], image: tuple[int, int, int], training: bool) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True
        self.device = next((p.device for p in net.parameters()), torch.device("cpu"))
        self.traced = _Traced(meta_copy(net).train(training))
        self.descend = {ROOT, *(f"{ROOT}.{name}" for name in descend)}
        for name in self.descend:
            module = self.traced.get_submodule(name)
            if module._forward_pre_hooks or any(
                hook not in (logits_of, features_of) for hook in module._forward_hooks.values()
            ):
                raise TraceError(f"{type(module).__name__} has forward hooks, which would not run")
            if module._backward_hooks or module._backward_pre_hooks:
                raise TraceError(f"{type(module).__name__} has backward hooks, which would not run")
        self.files = files_of(net)
        self.image = image
        self._stack: list[str] = []
        self._running = False
        self._autocast = AutocastRegions(self.device.type)
        self._tensors = {id(t): name for name, t in _tensors(self.traced)}
        self.constants: dict[str, Tensor] = {}
        self._drawn, self._drawing = "", _generators()

    def run(self) -> fx.Graph:
        """The graph; each node has ``meta``.

        "val" is what :func:`val` says, "images" whether it depends on them, "pixels" whether it does by more than their
        number, dtype and device, "path" the modules it is in, "line" the network's own, "regions" what it runs in.

        Raises:
            TraceError: with the reason, if the forward pass is none that a trace can follow.
        """
        before = self._drawing = _generators()
        try:
            with (
                torch.enable_grad(),
                Shortened(),
                leaf_functions(self.traced, self._call_leaf),
                self._autocast.watched(),
            ):
                graph = self.trace(self.traced)
        except TraceError as error:
            raise TraceError(error.reason, error.place or place_of(error, self.files), error.step) from error
        except FBTError:
            raise
        except Exception as error:  # a network's own code, run with stand-ins for tensors: anything may come of it
            raise self._refusal(error) from error
        finally:
            drew = _generators() != before
            _restore(before)
        if drew:
            raise TraceError(
                "it draws random numbers outside of its layers, where a trace would keep the first ones",
                self._drawn,
                "let a layer draw them (a module whose forward does), or leave them out: build it without",
            )
        for node in graph.nodes:
            if node.op == "output":
                node.meta.update(val=None, images=True, pixels=True, path=())
        return graph

    def _refusal(self, error: Exception) -> TraceError:
        """Whose fault an exception is: the network's, which fails without a trace as well, or the trace's."""
        place, why = place_of(error, self.files), _in_words(error)
        if operator_ := _VALUES.search(str(error)):
            name = next(filter(None, operator_.groups()))
            return TraceError(f"what it does depends on values of a tensor ({name})", place)
        images = torch.empty(2, *self.image, device="meta")
        try:
            with torch.no_grad(), Shortened():
                meta_copy(self.traced).train(self.traced.training)(images)
        except Exception as own:  # the same as with stand-ins, but for the batch size
            if isinstance(own, TypeError) and "positional argument" in str(own) and not place:
                step = "let the factory return a module whose forward takes the images alone"
                return TraceError(f"it takes more than images: {_in_words(own)}", step=step)
            if type(own) is type(error):
                size = "x".join(map(str, self.image[1:]))
                step = "mend it, or set image_size to that which it is made for"
                return TraceError(f"it takes no images of {size} pixels, and raises {_in_words(own)}", place, step)
        return TraceError(f"its forward cannot be followed: given stand-ins for tensors it raises {why}", place)

    # ---- what fx asks for ------------------------------------------------------------------------------------------

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name not in self.descend

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._running:  # inside a leaf, which runs as it is
            return forward(*args, **kwargs)
        try:
            path = self.path_of_module(module)
        except NameError:  # made on the way, of modules that the network has: these are what runs
            return forward(*args, **kwargs)
        self._stack.append(path)
        try:
            return super().call_module(module, forward, args, kwargs)
        finally:
            self._stack.pop()

    def getattr(self, name: str, value: Any, cache: dict[str, Any]) -> Any:
        return value if self._running else super().getattr(name, value, cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        regions = self._autocast.now if torch.is_grad_enabled() else (*self._autocast.now, NoGrad())
        node.meta.update(path=tuple(self._stack), line=calling(self.files), regions=regions)
        return node

    def create_arg(self, value: Any) -> Any:
        if isinstance(value, torch.Generator):
            raise TraceError("it draws random numbers of a generator of its own, outside of its layers")
        if isinstance(value, Tensor):
            name = self._tensors.get(id(value))
            if name is None:
                if value.is_meta and self.device.type != "meta":
                    raise TraceError(
                        "it computes with tensors that are neither parameters nor buffers nor made of its images"
                    )
                name = f"constant_{len(self.constants)}"
                self.constants[name] = value
                self._tensors[id(value)] = name
            return self.create_proxy("get_attr", name, (), {}).node
        return super().create_arg(value)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node, numbers = proxy.node, []

        def concrete(value: Any) -> Any:
            if isinstance(value, fx.Proxy):
                found = val(value.node)
                numbers.append(isinstance(found, int))
                return found
            if isinstance(value, torch.device):
                return torch.device("meta")
            return value.to("meta") if isinstance(value, Tensor) else value

        node.meta["images"] = kind == "placeholder" or any(i.meta["images"] for i in node.all_input_nodes)
        a, k = _plain(fx.node.map_aggregate((args, kwargs), concrete))
        self._running, before, drew = True, _generators(), False
        if before != self._drawing:  # since the node before
            self._drawn, self._drawing = self._drawn or calling(self.files), before
        try:
            with torch.no_grad():
                value = node.meta["val"] = self._value(kind, target, a, k)
            drew = _generators() != before
        finally:
            self._running = False
            _restore(before)  # what a leaf draws it will draw each time anew
        node.meta["pixels"] = kind == "placeholder" or drew or any(i.meta["pixels"] for i in values_of(node))
        fixed = not isinstance(value, Tensor | torch.dtype) and not _is_open(value)
        if fixed and not any(numbers):
            return value
        if type(value) in (tuple, list):  # which a network may ask for by isinstance
            return type(value)(
                self.create_proxy("call_function", operator.getitem, (proxy, i), {}) for i in range(len(value))
            )
        return proxy

    def _call_leaf(self, function: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.create_proxy(
            "call_method" if isinstance(function, str) else "call_function", function, args, kwargs
        )

    def _value(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kind == "placeholder":
            return torch.empty(BATCH, *self.image, device="meta")
        if kind == "get_attr":
            constant = self.constants.get(target)
            return operator.attrgetter(target)(self.traced) if constant is None else constant.to("meta")
        if kind == "call_module":
            return self.traced.get_submodule(target)(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def shape(self, proxy: fx.Proxy) -> tuple[Any, ...]:
        """Sizes of a tensor: numbers, but for those that the batch size is in."""
        sizes = []
        for i, size in enumerate(val(proxy.node).shape):
            if size and size % BATCH == 0:
                node = self.create_node("call_method", "size", (proxy.node, i), {})
                node.meta.update(val=size, images=True, pixels=False)
                sizes.append(self.proxy(node))
            else:
                sizes.append(size)
        return tuple(sizes)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and tensors that are plain attributes, by name."""
    yield from root.named_parameters(remove_duplicate=False)
    yield from root.named_buffers(remove_duplicate=False)
    for prefix, module in root.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}", value


def _generators() -> tuple[Any, ...]:
    """States of the generators that a network may draw from on a CPU."""
    state: Any = np.random.get_state()
    name, keys, *rest = state
    return random.getstate(), (name, keys.tobytes(), *rest), bytes(torch.default_generator.get_state().numpy())


def _restore(states: tuple[Any, ...]) -> None:
    python, (name, keys, *rest), own = states
    random.setstate(python)
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))
    torch.default_generator.set_state(torch.frombuffer(bytearray(own), dtype=torch.uint8))


def _plain(value: Any) -> Any:
    """Lists and dicts that may be changed, as a network's own code expects; fx makes them immutable."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if type(value) in (dict, immutable_dict):  # an object of a library that is a dict as well stays what it is
        return {k: _plain(v) for k, v in value.items()}
    return tuple(map(_plain, value)) if type(value) is tuple else value


def _is_open(value: Any) -> bool:
    """Whether a value has a tensor or a batch size in it, so that it is another one each time."""
    if isinstance(value, tuple | list):
        return any(map(_is_open, value))
    if isinstance(value, dict):
        return any(map(_is_open, value.values()))
    return isinstance(value, Tensor) or (type(value) is int and value != 0 and value % BATCH == 0)
