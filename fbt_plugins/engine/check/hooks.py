"""Hooks and the visualizer."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.registry import HOOKS, VISBACKENDS, VISUALIZERS

from ...config.options import DEFAULT_HOOKS
from .findings import Findings


def hooks(findings: Findings) -> None:
    """Those of every run, a config's own, and what draws."""
    changed = findings.config.get("default_hooks") or {}
    findings.known_keys(changed, DEFAULT_HOOKS, "default_hooks")
    for name in DEFAULT_HOOKS:
        findings.typed(HOOKS, changed.get(name), f"default_hooks.{name}", extra=("priority",))
    findings.typed(HOOKS, findings.config.get("custom_hooks"), "custom_hooks", extra=("priority",))
    if visualizer := findings.config.get("visualizer"):
        findings.typed(VISUALIZERS, visualizer, "visualizer")
        if isinstance(visualizer, Mapping):
            given = ("save_dir",)
            findings.typed(VISBACKENDS, visualizer.get("vis_backends"), "visualizer.vis_backends", given)
