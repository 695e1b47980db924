"""Parameter groups: as few as there are different rates and decays."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from ...errors import ConfigError, nearest
from ..training_run import unwrapped

OPTIONS = ("decay_vectors", "layer_decay", "custom_keys")
_OTHER_KERNELS = ("fused", "foreach", "capturable", "differentiable")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedGroupConstructor:
    """Parameters of the same learning rate and weight decay share a group; frozen ones are in none.

    Vectors and scalars (biases, norms, gains, temperatures) do not decay, nor what the student's network names in its
    ``no_weight_decay()`` (position embeddings, for example). mmengine's ``paramwise_cfg`` makes a group of each
    parameter, which slows the optimizer's step several times. On a GPU the optimizer is torch's fused one, where it has
    one and the config does not say otherwise.

    Args:
        optim_wrapper_cfg: config of the wrapper, with its ``optimizer``.
        paramwise_cfg: ``decay_vectors=True`` lets vectors and scalars decay too; ``layer_decay=0.75`` multiplies the
            learning rate by that for each layer of the student below its last (BEiT, arXiv 2106.08254; layers as timm
            numbers them); ``custom_keys=dict(log_temperature=dict(lr_mult=0.1))`` multiplies that of all parameters
            whose name contains the key, as mmengine's option does; of several keys the longest counts.

    Raises:
        ConfigError: for an unknown option, a layer decay that this student cannot have, or a key that is in no name.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.config = dict(optim_wrapper_cfg)
        options = dict(paramwise_cfg or {})
        self.decay_vectors = options.pop("decay_vectors", False)
        self.layer_decay = options.pop("layer_decay", None)
        self.factors = _factors(options.pop("custom_keys", {}))
        if options:
            name = next(iter(options))
            raise ConfigError(f"optim_wrapper.paramwise_cfg: no option {name!r}{nearest(name, OPTIONS)}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim_wrapper.paramwise_cfg.layer_decay: above 0 and at most 1, not {self.layer_decay}")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = unwrapped(model)
        config = dict(self.config)
        optimizer = dict(config.pop("optimizer"))
        rate: Any = optimizer.get("lr")
        needs_rate = "layer_decay" if self.layer_decay is not None else "custom_keys" if self.factors else None
        if needs_rate and not isinstance(rate, int | float):
            raise ConfigError(f"optim_wrapper.paramwise_cfg.{needs_rate}: set optim_wrapper.optimizer.lr")
        scales, exempt = self._scales(model), set(_exempt(model))
        # Groups in the order that a reader expects: top layers first, and of a layer those that decay.
        merged: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                plain = (parameter.ndim <= 1 and not self.decay_vectors) or name in exempt
                merged.setdefault((scales.get(name, 1.0), plain), []).append(parameter)
        groups = []
        for (scale, plain), parameters in sorted(merged.items(), key=lambda item: (-item[0][0], item[0][1])):
            group: dict[str, Any] = {"params": parameters}
            if plain:
                group["weight_decay"] = 0.0
            if scale != 1.0:
                group["lr"] = rate * scale
            groups.append(group)
        kind = OPTIMIZERS.get(optimizer["type"])
        on_gpu = groups[0]["params"][0].device.type == "cuda"
        if on_gpu and "fused" in inspect.signature(kind).parameters and not set(_OTHER_KERNELS) & set(optimizer):
            optimizer["fused"] = True
        built = OPTIMIZERS.build(optimizer, default_args={"params": groups})
        config.setdefault("type", "AutocastOptimWrapper")
        return OPTIM_WRAPPERS.build(config, default_args={"optimizer": built})

    def _scales(self, model: nn.Module) -> dict[str, float]:
        """Factor of the learning rate of each parameter that has one."""
        scales = self._of_layers(model) if self.layer_decay is not None else {}
        names = [name for name, _ in model.named_parameters()]
        for key in sorted(self.factors, key=len):
            if not (own := [name for name in names if key in name]):
                raise ConfigError(f"optim_wrapper.paramwise_cfg.custom_keys: {key!r} is in no parameter's name")
            scales |= dict.fromkeys(own, self.factors[key])
        return scales

    def _of_layers(self, model: nn.Module) -> dict[str, float]:
        from timm.models import group_parameters

        net: Any = model.get_submodule("student.net")
        if not hasattr(net, "group_matcher"):
            raise ConfigError(
                f"optim_wrapper.paramwise_cfg.layer_decay: {type(net).__name__} has no group_matcher() that numbers "
                "its layers, as timm's models have"
            )
        layers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
        last = max(layers.values())
        return {f"student.net.{name}": self.layer_decay ** (last - layer) for name, layer in layers.items()}  # type: ignore[operator]


def _factors(custom_keys: Any) -> dict[str, float]:
    """By key, what the learning rate is multiplied by."""
    where = "optim_wrapper.paramwise_cfg.custom_keys"
    if not isinstance(custom_keys, Mapping):
        raise ConfigError(f"{where}: write dict(log_temperature=dict(lr_mult=0.1)), not {custom_keys!r}")
    for key, options in custom_keys.items():
        factor = options.get("lr_mult") if isinstance(options, Mapping) and len(options) == 1 else None
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < float("inf"):
            raise ConfigError(f"{where}.{key}: write dict(lr_mult=FACTOR), FACTOR at least 0, not {options!r}")
    return {key: options["lr_mult"] for key, options in custom_keys.items()}


def _exempt(model: nn.Module) -> Iterator[str]:
    """The student's parameters that its network says must not decay."""
    net: Any = getattr(getattr(model, "student", None), "net", None)
    patterns = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    for name, _ in net.named_parameters() if patterns else ():
        if any(fnmatch(name, pattern) for pattern in patterns):
            yield f"student.net.{name}"
