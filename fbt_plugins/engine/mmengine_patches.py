"""Where mmengine's runner and loops have no public way to what we need; a test of each says when it can go."""

from __future__ import annotations

from typing import Any, ClassVar

from mmengine.runner import Runner


class PatchedRunner(Runner):
    """mmengine's Runner, whose inner steps end in public methods of ours."""

    _names: ClassVar[set[str]] = set()

    @property
    def _experiment_name(self) -> str:
        """mmengine's name of the run, under which it keeps logger, message hub and visualizer for the whole process.

        It ends in the second of the start, so two runs of one second would share them, and with them their best score.
        A name that is taken gets a "+".
        """
        return self._unique_name

    @_experiment_name.setter
    def _experiment_name(self, name: str) -> None:
        self._unique_name = name
        while self._unique_name in self._names:
            self._unique_name += "+"
        self._names.add(self._unique_name)

    @property
    def iter(self) -> int:
        """Iterations that are done.

        mmengine's asks each time whether its loop is one, of an abstract class, which is slow, and hooks ask often.
        """
        return getattr(self._train_loop, "_iter", 0)

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """mmengine's asks compilers and drivers for their versions, which takes seconds, and logs all of them."""
        self.log_start()

    def log_start(self) -> None:
        """Logs what a run should know about itself; called once, when the logger is there."""
        raise NotImplementedError

    def _maybe_compile(self, target: str) -> None:
        """mmengine's compiles the model's whole train_step, the optimizer and its bookkeeping with it."""
        self.compile_model()

    def compile_model(self) -> None:
        """Compiles what the config says; called once, right before the first step."""
        raise NotImplementedError


def set_position(loop: Any, epoch: int, iteration: int) -> None:
    """Lets a training loop go on from there; mmengine's loops say where they are, but not how to change it."""
    loop._epoch, loop._iter = epoch, iteration
