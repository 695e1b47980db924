import sys
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

import pytest

from fbt_plugins import load_plugins
from fbt_plugins.errors import FBTError, UnknownNameError
from fbt_plugins.plugins import Plugins
from fbt_plugins.registry import PluginRegistry, Registries

GOOD = """
import fbt_plugins
class Good: ...
@fbt_plugins.hookimpl
def fbt_register(registries):
    registries.losses.register_module(module=Good)
"""
HALF = """
import fbt_plugins
class Half: ...
@fbt_plugins.hookimpl
def fbt_register(registries):
    registries.losses.register_module(module=Half)
    raise RuntimeError("out of ideas")
"""
TAKEN = GOOD + "    registries.losses.register_module(name='Good2', module=Good)\n"


class FakeDistribution(Distribution):
    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def metadata(self):  # type: ignore[no-untyped-def]
        return {"Name": self._name, "Version": "1.2"}

    @property
    def version(self) -> str:
        return "1.2"

    def read_text(self, filename: str) -> None:
        return None

    def locate_file(self, path: object) -> Path:
        return Path()


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A manager of its own, and a function that loads modules of given source through entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = Plugins(Registries(PluginRegistry("architecture"), PluginRegistry("fusion"), PluginRegistry("loss")))

    def load(**sources: str) -> Plugins:
        points = []
        for name, source in sources.items():
            (tmp_path / f"plugin_{name}.py").write_text(source)
            sys.modules.pop(f"plugin_{name}", None)
            point = EntryPoint(name, f"plugin_{name}", "fbt_plugins")
            points.append(point._for(FakeDistribution(f"fbt-{name}")))  # type: ignore[attr-defined]
        plugins.load_installed(points)
        return plugins

    return load


def test_registers_what_a_plugin_offers_and_knows_whose_it_is(isolated) -> None:  # type: ignore[no-untyped-def]
    plugins = isolated(good=GOOD)
    assert plugins.registries.losses.owners == {"Good": "good"}
    assert (plugins.loaded["good"].distribution, plugins.loaded["good"].version) == ("fbt-good", "1.2")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "no_such_module"),
        ("raise SystemExit(3)", "SystemExit"),
        ("def f(:", "SyntaxError"),
        (HALF, "out of ideas"),
        ("x = 1", "no hook"),
        ("FBT_API_VERSION = 99", "written for plugin interface 99"),
        ("import fbt_plugins\n@fbt_plugins.hookimpl\ndef fbt_register(registry): ...", "registry"),
        (GOOD, "Good"),  # the name is taken by then
    ],
)
def test_a_failing_plugin_hurts_nobody_else(isolated, source: str, reason: str) -> None:  # type: ignore[no-untyped-def]
    plugins = isolated(first=GOOD, bad=source, last=GOOD.replace("Good", "Last"))
    assert set(plugins.loaded) == {"first", "last"}
    assert set(plugins.registries.losses.module_dict) == {"Good", "Last"}
    (failure,) = plugins.failures
    assert (failure.plugin, failure.distribution, failure.version) == ("bad", "fbt-bad", "1.2")
    assert reason in failure.error and "\n" not in failure.error
    with pytest.raises(UnknownNameError, match=r"fbt-bad 1\.2"):
        plugins.registries.losses.get("Missing")


def test_loading_again_changes_nothing(isolated) -> None:  # type: ignore[no-untyped-def]
    isolated(good=GOOD, bad=HALF)
    plugins = isolated(good=GOOD, bad=HALF)
    assert len(plugins.loaded) == len(plugins.failures) == 1
    assert load_plugins() is load_plugins()


def test_a_module_named_in_a_config_must_load(isolated) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FBTError, match="no_such_plugin"):
        isolated().load_module("no_such_plugin")


def test_a_module_named_in_a_config_needs_no_hook(isolated, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    plugins = isolated()
    (tmp_path / "plugin_plain.py").write_text("x = 1")
    plugins.load_module("plugin_plain")
    assert "plugin_plain" in plugins.loaded and not plugins.failures


def test_the_built_in_plugins_come_in_by_the_same_door(plugins: Plugins) -> None:
    assert not plugins.failures
    assert {p.distribution for n, p in plugins.loaded.items() if n in ("architectures", "fusions", "losses")} == {
        "fbt-plugins"
    }
    assert {"timm"} <= set(plugins.registries.architectures.module_dict)
    assert {"L2GFusion"} <= set(plugins.registries.fusions.module_dict)
    losses = {"InfoNCELoss", "OFALoss", "MSELoss", "KDLoss", "CrossEntropyLoss"}
    assert losses <= set(plugins.registries.losses.module_dict)
