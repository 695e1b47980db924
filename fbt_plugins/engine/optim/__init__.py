"""The optimizer: its wrapper and its parameter groups. Importing this registers them with mmengine."""

from . import param_groups, wrapper  # noqa: F401
