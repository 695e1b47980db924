"""Fixtures named check_... and isolated_plugins come with fbt-plugins."""


def test_the_hook_registers_three_parts(isolated_plugins):
    isolated_plugins.load_module("my_parts")
    names = [set(registry.module_dict) for registry in isolated_plugins.registries]
    assert names == [{"my_parts_net"}, {"MyPartsFusion"}, {"MyPartsLoss"}]


def test_the_network_is_its_stages_and_head(check_architecture):
    check_architecture(dict(type="my_parts_net", num_classes=10))


def test_the_fusion_joins_models_of_all_layouts(check_fusion):
    check_fusion(dict(type="MyPartsFusion"))


def test_the_loss(check_loss):
    check_loss(dict(type="MyPartsLoss"))
    check_loss(dict(type="MyPartsLoss"), task=True)
