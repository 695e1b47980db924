"""Parts for FBT-plugins: what this module registers, configs can name."""

from fbt_plugins import Registries, hookimpl

from .backbone import build_my_parts_net
from .fusion import MyPartsFusion
from .loss import MyPartsLoss

FBT_API_VERSION = 1


@hookimpl
def fbt_register(registries: Registries) -> None:
    registries.architectures.register_module(name="my_parts_net", module=build_my_parts_net)
    registries.fusions.register_module(module=MyPartsFusion)
    registries.losses.register_module(module=MyPartsLoss)
