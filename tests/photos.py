"""Folders of images, and what is trained on them in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

CLASSES = ("cat", "dog", "emu")
NETWORK = """
from torch import nn


def make(num_classes, width=4):
    def block(before, after):
        return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())

    rows = [block(*ends) for ends in ((3, width), (width, width), (width, 2 * width), (2 * width, 2 * width))]
    return nn.Sequential(*rows, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))
"""
VIT_OF_TIMM = dict(model_name="vit_tiny_patch16_224", patch_size=4, img_size=16, embed_dim=12, depth=4, num_heads=2)
VIT = dict(type="timm", name="vit_tiny_patch16_224", patch_size=4, img_size=16, embed_dim=12, depth=4, num_heads=2)
Fill = Callable[..., Path]
"""Makes a folder of images from how many there are in each place."""
