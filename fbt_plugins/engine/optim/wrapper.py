"""The optimizer wrapper: precision on any device, accumulation, clipping, and updates that stop at the first NaN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch import distributed as dist

from ...errors import ConfigError, FBTError, nearest

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SWITCHES = ("fused", "foreach", "capturable", "differentiable")
"""Arguments of torch's optimizers that say how they compute."""

MOST_SKIPPED = 20
"""Updates in a row that fp16 may skip: its scale, 2**16 at first, is halved each time, and is then below 1/8."""


class AlwaysOverflows(FBTError):
    """The gradient was not finite in fp16, however small its scale.

    Args:
        skipped: updates in a row that were skipped.
        parameters: whose gradient is not finite.
    """

    def __init__(self, skipped: int, parameters: list[nn.Parameter]) -> None:
        super().__init__(f"the gradient was not finite in {skipped} updates in a row, and none of them was made")
        self.parameters = parameters


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(gradient.isfinite().all())


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Precision by ``torch.autocast`` on whatever device the model is on; losses are scaled for fp16 only.

    A loss or gradient that is not finite stops all updates from that step on, on every rank, without a wait for the
    device where the optimizer is a fused one on a GPU; the loss guard finds out later which loss it was. (Gradients
    that overflow in fp16 are no fault: torch's scaler skips those steps and lowers its scale; too many in a row are.)

    mmengine's own AmpOptimWrapper refuses CPUs, and its gradient clipping reads the norm at every step.

    Args:
        precision: "fp32", "bf16" or "fp16".
        kwargs: see mmengine's OptimWrapper; ``accumulative_counts`` batches make one update, fewer at the end of an
            epoch.

    Attributes:
        period: iterations after which a group of accumulated batches ends in any case; the loop sets it.
        grad_norm: of the last update, before clipping, on the device; without clipping by norm 0, or inf where the
            gradients were not finite. None without an update, and for fp16, whose scaler lets gradients overflow.
    """

    def __init__(self, precision: str = "fp32", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if precision not in PRECISIONS:
            raise ConfigError(f"optim_wrapper.precision: {precision!r}{nearest(precision, PRECISIONS)}")
        self.dtype = PRECISIONS[precision]
        self._trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.device = self._trained[0].device
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        # A fused optimizer on a GPU leaves everything as it is where its found_inf is 1, so nobody has to wait for the
        # device. Torch's GradScaler, too, reads off this private attribute which optimizers can do that.
        fused = getattr(self.optimizer, "_step_supports_amp_scaling", False) and self.device.type == "cuda"
        self._masked_on_device = fused and not self._scaler.is_enabled()
        self._bad = torch.zeros((), device=self.device)
        self._one = torch.ones((), device=self.device)
        self._stopped = False  # the same as a Python value, for optimizers that are not masked on the device
        self._skipped, self._updated = 0, False  # updates in a row; whether one was ever made here
        self.period = 0
        self.grad_norm: Tensor | None = None

    # ---- accumulation: groups of batches never cross the end of a period ------------------------------------------

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        self._inner_count, self._max_counts = init_counts, max_counts
        self.period = self.period or max_counts

    def should_update(self) -> bool:
        return self._ends_group(self._inner_count)

    def should_sync(self) -> bool:
        return self._ends_group(self._inner_count + 1)

    def _ends_group(self, count: int) -> bool:
        position = (count - 1) % self.period + 1 if self.period else count
        return position % self._accumulative_counts == 0 or position == self.period

    def group_start(self, iteration: int) -> int:
        """The first iteration of the group of accumulated batches that an iteration belongs to."""
        position = iteration % self.period if self.period else iteration
        return iteration - position % self._accumulative_counts

    def get_scale_factor(self) -> int:
        """How many batches the current group has."""
        rest = self.period % self._accumulative_counts if self.period else 0
        in_rest = rest and self._inner_count % self.period >= self.period - rest
        return rest if in_rest else self._accumulative_counts

    # ---- one step --------------------------------------------------------------------------------------------------

    def optim_context(self, model: nn.Module) -> AbstractContextManager[None]:
        if self.dtype is torch.float32 and self._accumulative_counts == 1:
            return nullcontext()
        return self._context(model)

    @contextmanager
    def _context(self, model: nn.Module) -> Iterator[None]:
        enabled = self.dtype is not torch.float32
        dtype = self.dtype if enabled else None
        with super().optim_context(model), torch.autocast(self.device.type, dtype, enabled=enabled):
            yield

    def scale_loss(self, loss: Tensor) -> Tensor:
        factor = self.get_scale_factor()
        return loss if factor == 1 else loss / factor

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.grad_norm = None
        # The backward pass starts from 1, or from NaN where the loss is not finite. Then all gradients are NaN, on
        # every rank, also where the loss's own gradient was finite.
        seed = torch.addcmul(self._one, loss.detach(), self._one, value=0)
        if self._scaler.is_enabled():
            self._bad = torch.maximum(self._bad, seed.isnan().float())
        self._scaler.scale(loss).backward(gradient=seed, **kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        if self._scaler.is_enabled():
            self._scaled_step(**kwargs)
        elif self._masked_on_device:
            self._bad = torch.maximum(self._bad, self._found())
            self.optimizer.found_inf = self._bad  # type: ignore[attr-defined]
            self.optimizer.step(**kwargs)
        elif not self._stopped and not self._found().item():
            self.optimizer.step(**kwargs)
        else:
            self._stopped = True

    def _scaled_step(self, **kwargs: Any) -> None:
        if get_world_size() > 1:
            dist.all_reduce(self._bad, dist.ReduceOp.MAX)
        self._stopped = bool(self._bad.item())
        if self._stopped:
            return
        if self.clip_grad_kwargs:
            self._scaler.unscale_(self.optimizer)
            self.clip_func(self._trained, **self.clip_grad_kwargs)
        scale = self._scaler.get_scale()
        self._scaler.step(self.optimizer, **kwargs)
        self._scaler.update()
        skipped = self._scaler.get_scale() < scale
        self._skipped, self._updated = (self._skipped + 1 if skipped else 0), self._updated or not skipped
        if self._skipped >= MOST_SKIPPED:
            raise AlwaysOverflows(self._skipped, [p for p in self._trained if not _finite(p.grad)])

    @property
    def only_skipped(self) -> int:
        """How many updates were skipped for fp16's overflows, where none was made at all."""
        return 0 if self._updated else self._skipped

    def _found(self) -> Tensor:
        """1 where the gradients are not finite, else 0; they are clipped on the way."""
        norm = self.clip_func(self._trained, **self.clip_grad_kwargs) if self.clip_grad_kwargs else None
        if norm is not None:
            self.grad_norm = norm
            return norm.isfinite().logical_not().float()
        found = torch.zeros_like(self._bad)
        if gradients := [p.grad for p in self._trained if p.grad is not None]:
            # The private function that torch's GradScaler finds out with, here with a scale of 1: one call however many
            # tensors there are, and no public function is that.
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, self._one)
        self.grad_norm = found / (1 - found)
        return found

    def trusted(self) -> Tensor | float:
        """1 while updates go on, 0 from the first that was not finite; on the device where that is not known here."""
        if self._masked_on_device:
            return 1 - self._bad
        return 0.0 if self._stopped else 1.0

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"scaler": self._scaler.state_dict()} if self._scaler.is_enabled() else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        if (scaler := state.pop("scaler", None)) and self._scaler.is_enabled():
            self._scaler.load_state_dict(scaler)
        # How updates are computed is this run's: the checkpoint's device may have been another.
        groups = zip(state["param_groups"], self.optimizer.param_groups, strict=True)
        state["param_groups"] = [{**old, **{k: own[k] for k in SWITCHES if k in own}} for old, own in groups]
        super().load_state_dict(state)
