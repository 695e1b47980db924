"""Hugging Face vision classifiers as architectures of FBT-plugins, ``type="huggingface"``."""

from __future__ import annotations

from fbt_plugins import Registries, hookimpl

from .build import build_huggingface


@hookimpl
def fbt_register(registries: Registries) -> None:
    registries.architectures.register_module(name="huggingface", module=build_huggingface)
