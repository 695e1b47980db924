"""Optimizer wrappers: precision on any device, and few parameter groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from ..errors import ConfigError, nearest

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Precision by ``torch.autocast`` on whatever device the model is on; losses are scaled for fp16 only.

    mmengine's own AmpOptimWrapper refuses CPUs, and its gradient clipping reads the norm at every step.

    Args:
        precision: "fp32", "bf16" or "fp16".
        kwargs: see mmengine's OptimWrapper.
    """

    def __init__(self, precision: str = "fp32", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if precision not in PRECISIONS:
            raise ConfigError(f"optim_wrapper.precision: {precision!r}{nearest(precision, PRECISIONS)}")
        self.dtype = PRECISIONS[precision]
        device = self.optimizer.param_groups[0]["params"][0].device.type
        self._scaler = torch.amp.GradScaler(device, enabled=self.dtype is torch.float16)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        enabled = self.dtype is not torch.float32
        with super().optim_context(model), torch.autocast(device, self.dtype if enabled else None, enabled=enabled):
            yield

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        self._scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        if self.clip_grad_kwargs:
            self._scaler.unscale_(self.optimizer)
            self._clip_grad()
        self._scaler.step(self.optimizer, **kwargs)
        self._scaler.update()

    def _clip_grad(self) -> None:
        """Clips without reading the norm, which would wait for the device."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if parameters:
            self.clip_func(parameters, **self.clip_grad_kwargs)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"scaler": self._scaler.state_dict()} if self._scaler.is_enabled() else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        if (scaler := state.pop("scaler", None)) and self._scaler.is_enabled():
            self._scaler.load_state_dict(scaler)
        super().load_state_dict(state)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoGroupConstructor:
    """Two parameter groups, with and without weight decay; frozen parameters are in neither.

    Vectors and scalars (biases, norms, gains, temperatures) do not decay. mmengine's ``paramwise_cfg`` makes a group of
    each parameter, which slows the optimizer's step several times.

    Args:
        optim_wrapper_cfg: config of the wrapper, with its ``optimizer``.
        paramwise_cfg: ``dict(decay_vectors=True)`` lets vectors and scalars decay too.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.config = dict(optim_wrapper_cfg)
        options = dict(paramwise_cfg or {})
        self.decay_vectors = options.pop("decay_vectors", False)
        if options:
            name = next(iter(options))
            raise ConfigError(f"optim_wrapper.paramwise_cfg: no option {name!r}{nearest(name, ['decay_vectors'])}")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, "module", model)
        trained = [p for p in model.parameters() if p.requires_grad]
        plain = [p for p in trained if p.ndim <= 1 and not self.decay_vectors]
        rest = [p for p in trained if p.ndim > 1 or self.decay_vectors]
        groups = [{"params": rest}] + ([{"params": plain, "weight_decay": 0.0}] if plain else [])
        config = dict(self.config)
        optimizer = OPTIMIZERS.build(
            dict(config.pop("optimizer")), default_args={"params": [g for g in groups if g["params"]]}
        )
        config.setdefault("type", "AutocastOptimWrapper")
        return OPTIM_WRAPPERS.build(config, default_args={"optimizer": optimizer})
