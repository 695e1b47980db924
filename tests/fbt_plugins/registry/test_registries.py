import pytest

from fbt_plugins.errors import ConfigError, PluginError, UnknownNameError
from fbt_plugins.registry.registries import PluginFailure, PluginInfo, PluginRegistry


class Thing:
    def __init__(self, size: int, colour: str = "red", sides: "tuple[int, ...] | None" = None) -> None:
        if size < 0:
            raise ValueError("size must be 0 or more")
        self.size, self.colour = size, colour


@pytest.fixture
def registry() -> PluginRegistry:
    registry = PluginRegistry("thing")
    registry.register_module(module=Thing)
    return registry


def test_builds_by_name(registry: PluginRegistry) -> None:
    assert registry.build(dict(type="Thing", size=3)).size == 3


def test_unknown_names_answer_with_the_nearest_and_with_what_failed_to_load(registry: PluginRegistry) -> None:
    registry.failures = [PluginFailure("extra", "fbt-extra", "2.1", "ModuleNotFoundError: no module named 'zzz'")]
    with pytest.raises(UnknownNameError, match=r"'Thng'.*did you mean 'Thing'\?.*extra.*fbt-extra 2.1.*zzz"):
        registry.build(dict(type="Thng", size=1))


def test_dotted_paths_reach_nothing(registry: PluginRegistry) -> None:
    with pytest.raises(UnknownNameError, match="dotted import paths are not accepted"):
        registry.build(dict(type="subprocess.run", args=["true"]))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(type="Thing", sise=3), "no argument 'sise'; did you mean 'size'"),
        (dict(type="Thing"), "'size' is missing"),
        (dict(type="Thing", size=-1), "Thing: size must be 0 or more"),
        (dict(type="Thing", size=1, sides="abc"), "Thing: sides must be a list, not 'abc'"),
        (dict(type="Thing", size=1, sides=3), "Thing: sides must be a list, not 3"),
        (dict(size=1), "expected a dict with a 'type'"),
        ("Thing", "expected a dict with a 'type'"),
    ],
)
def test_wrong_arguments_are_config_errors(registry: PluginRegistry, config: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        registry.build(config)  # type: ignore[arg-type]


def test_a_taken_name_is_refused(registry: PluginRegistry) -> None:
    with pytest.raises(KeyError):
        registry.register_module(name="Thing", module=dict)


def test_what_a_plugin_raises_comes_with_its_place(registry: PluginRegistry) -> None:
    def broken() -> None:
        [][3]

    registry.register_module(name="Broken", module=broken)
    registry.owners["Broken"] = PluginInfo("own", module=__name__)
    with pytest.raises(PluginError, match=r"raised IndexError: .* in .*broken \(test_registries.py:\d+"):
        registry.build(dict(type="Broken"))
