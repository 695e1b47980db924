import sys
from collections.abc import Callable
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

import mmengine.hooks  # noqa: F401 - registers EMAHook
import pytest
import torch
from mmengine.registry import HOOKS

from fbt_plugins import load_plugins, testing
from fbt_plugins.errors import FBTError, UnknownNameError
from fbt_plugins.registry.loading import Plugins

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


Load = Callable[..., Plugins]


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated_plugins: Plugins) -> Load:
    """Loads modules of given source through entry points, into a manager of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(**sources: str) -> Plugins:
        points = []
        for name, source in sources.items():
            (tmp_path / f"plugin_{name}.py").write_text(source)
            sys.modules.pop(f"plugin_{name}", None)
            point = EntryPoint(name, f"plugin_{name}", "fbt_plugins")
            points.append(point._for(FakeDistribution(f"fbt-{name}")))  # type: ignore[attr-defined]
        isolated_plugins.load_installed(points)
        return isolated_plugins

    return load


def test_registers_what_a_plugin_offers_and_knows_whose_it_is(isolated: Load) -> None:
    plugins = isolated(good=GOOD)
    assert plugins.registries.losses.owners == {"Good": plugins.loaded["good"]}
    assert (plugins.loaded["good"].distribution, plugins.loaded["good"].version) == ("fbt-good", "1.2")


FAULTS = {
    "module missing": ("import no_such_module", "'no_such_module'", "pip install no_such_module, which fbt-bad needs"),
    "own module missing": ("import plugin_bad.parts", "plugin_bad", "pip install --force-reinstall fbt-bad"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3", "pip uninstall fbt-bad; FBT_DEBUG=1 shows the traceback"),
    "no Python": ("def f(:", "SyntaxError", "pip uninstall fbt-bad"),
    "raises in its hook": (HALF, "RuntimeError: out of ideas", "pip uninstall fbt-bad"),
    "a wrong value in its hook": (
        HALF.replace("RuntimeError", "ValueError"),
        "ValueError: out of ideas (",  # a type and a place, whatever was raised
        "pip uninstall fbt-bad",
    ),
    "no hook": ("x = 1", "no hook: define fbt_register(registries)", "pip uninstall fbt-bad"),
    "misspelt hook": (
        GOOD.replace("fbt_register(", "fbt_registr("),
        "there is no hook 'fbt_registr'; did you mean 'fbt_register'",
        "pip uninstall fbt-bad",
    ),
    "no mark": (
        GOOD.replace("@fbt_plugins.hookimpl\n", ""),
        "its fbt_register is not marked: write @hookimpl above",
        "",
    ),
    "newer": ("FBT_API_VERSION = 99", "plugin interface 99, this is 1", "pip install --upgrade fbt-plugins"),
    "older": (
        "FBT_API_VERSION = 0",
        "plugin interface 0, this is 1",
        "upgrade it, or remove it: pip uninstall fbt-bad",
    ),
    "hook of another form": (
        GOOD.replace("(registries)", "(registry)"),
        "must take one argument, called registries",
        "pip uninstall fbt-bad",
    ),
    "taken name": (GOOD, "'Good' is the name of a loss of plugin 'first' (fbt-first 1.2); register", "pip uninstall"),
    "replaced": (
        GOOD.replace("module=Good", "module=Good, force=True"),
        "it replaces the loss 'Good' of plugin 'first' (fbt-first 1.2)",
        "pip uninstall fbt-bad",
    ),
    "no class": (
        GOOD.replace("module=Good", "name='Five', module=5"),
        "class or a function under a name, not int 5",
        "",
    ),
    "an instance": (
        GOOD.replace("class Good: ...", "class Good:\n    def __call__(self): ...").replace(
            "=Good", "=Good(), name='A'"
        ),
        "a loss is a class or a function under a name, not Good",
        "pip uninstall fbt-bad",
    ),
    "a generator": (
        GOOD.replace("class Good: ...", "def Good():\n    yield 1"),
        "'Good' must be a class or a plain function that returns a torch.nn.Module, without async and yield",
        "pip uninstall fbt-bad",
    ),
    "a coroutine": (GOOD.replace("class Good: ...", "async def Good(): ..."), "without async and yield", ""),
    "a hook that is a coroutine": (
        GOOD.replace("def fbt_register", "async def fbt_register"),
        "its fbt_register must be a plain function, without async and yield: nothing would run",
        "",
    ),
    "a hook that is a generator": (GOOD + "    yield", "its fbt_register must be a plain function, without async", ""),
    "replaced while it is imported": (
        GOOD.replace("Good", "Bad")
        + "registries = fbt_plugins.testing.OF_THE_TEST\nregistries.losses.register_module(name='Good', force=True,"
        " module=list)",
        "it replaces the loss 'Good' of plugin 'first' (fbt-first 1.2); register another name",
        "pip uninstall fbt-bad",
    ),
    "a replaced hook": (
        "from mmengine.registry import HOOKS\n@HOOKS.register_module(force=True)\nclass EMAHook: ...\n"
        + GOOD.replace("Good", "Bad"),
        "it replaces the hook 'EMAHook' of mmengine.hooks.ema_hook; register another name",
        "pip uninstall fbt-bad",
    ),
    "default dtype": (
        "import torch\ntorch.set_default_dtype(torch.float64)\n" + GOOD.replace("Good", "Bad"),
        "it made torch.float64 torch's default dtype, for the whole program; that was undone",
        "pip uninstall fbt-bad",
    ),
    "default device, gradients": (
        "import torch\ntorch.set_default_device('meta')\n"
        + GOOD.replace("Good", "Bad")
        + "    torch.set_grad_enabled(False)",
        "it made meta torch's default device and left torch's gradients switched off (use `with torch.no_grad():`)",
        "pip uninstall fbt-bad",
    ),
    "an exception without text": (
        "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute",
        "Mute: (its own text cannot be made: RuntimeError)",
        "FBT_DEBUG=1 shows the traceback",
    ),
}


@pytest.mark.parametrize(("source", "reason", "remedy"), FAULTS.values(), ids=FAULTS)
def test_a_failing_plugin_hurts_nobody_else(
    isolated: Load, source: str, reason: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "OF_THE_TEST", isolated().registries, raising=False)
    hooks = dict(HOOKS.module_dict)
    plugins = isolated(first=GOOD, bad=source, last=GOOD.replace("Good", "Last"))
    assert (torch.get_default_dtype(), torch.ones(1).device.type) == (torch.float32, "cpu") and torch.is_grad_enabled()
    assert hooks == HOOKS.module_dict
    assert set(plugins.loaded) == {"first", "last"}
    assert set(plugins.registries.losses.module_dict) == {"Good", "Last"}
    (failure,) = plugins.failures
    assert (failure.plugin, failure.distribution, failure.version) == ("bad", "fbt-bad", "1.2")
    line = str(failure)
    assert line.startswith("plugin 'bad' (fbt-bad 1.2) failed to load: ") and "\n" not in line
    assert reason in failure.error and remedy in failure.remedy
    assert ("plugin_bad.py, line 7)" in failure.error) == ("out of ideas" in reason)
    with pytest.raises(UnknownNameError) as missed:
        plugins.registries.losses.get("Missing")
    assert line in str(missed.value)


def test_two_distributions_with_one_name_for_their_plugins(isolated: Load) -> None:
    plugins = isolated(good=GOOD)
    point = EntryPoint("good", "plugin_good", "fbt_plugins")._for(FakeDistribution("other"))  # type: ignore[attr-defined]
    plugins.load_installed([point])
    assert "has the name of plugin 'good' (fbt-good 1.2)" in str(plugins.failures[0])


def test_what_is_registered_while_a_plugin_is_imported_goes_with_it(isolated: Load) -> None:
    source = "from mmengine.registry import HOOKS\n@HOOKS.register_module()\nclass OfA{}: ...\n"
    isolated(half=source.format("Half") + HALF, good=source.format("Good") + GOOD)
    assert "OfAHalf" not in HOOKS and "OfAGood" in HOOKS
    del HOOKS.module_dict["OfAGood"]


def test_an_entry_point_names_a_module(isolated_plugins: Plugins) -> None:
    point = EntryPoint("thing", "collections:OrderedDict", "fbt_plugins")._for(FakeDistribution("d"))  # type: ignore[attr-defined]
    isolated_plugins.load_installed([point])
    assert "its entry point must name a module, not type" in str(isolated_plugins.failures[0])


def test_debugging_shows_where_a_plugin_failed(
    isolated: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    isolated(quiet=HALF)
    assert not capsys.readouterr().err
    monkeypatch.setenv("FBT_DEBUG", "1")
    isolated(loud=HALF)
    assert 'plugin_loud.py", line 7' in capsys.readouterr().err


def test_loading_again_changes_nothing(isolated: Load) -> None:
    isolated(good=GOOD, bad=HALF)
    plugins = isolated(good=GOOD, bad=HALF)
    assert len(plugins.loaded) == len(plugins.failures) == 1
    assert load_plugins() is load_plugins()


def test_a_module_named_in_a_config_must_load(isolated: Load) -> None:
    with pytest.raises(FBTError, match="no_such_plugin"):
        isolated().load_module("no_such_plugin")


def test_a_module_named_in_a_config_needs_no_hook(isolated: Load, tmp_path: Path) -> None:
    plugins = isolated()
    (tmp_path / "plugin_plain.py").write_text("x = 1")
    plugins.load_module("plugin_plain")
    assert "plugin_plain" in plugins.loaded and not plugins.failures
    (tmp_path / "plugin_misspelt.py").write_text(GOOD.replace("fbt_register(", "fbt_registr("))
    with pytest.raises(FBTError, match="there is no hook 'fbt_registr'"):  # a hook that nobody calls is no plain module
        plugins.load_module("plugin_misspelt")


def test_a_module_that_is_installed_may_be_named_in_a_config_besides(isolated: Load) -> None:
    plugins = isolated(good=GOOD)
    plugins.load_module("plugin_good")
    assert len(plugins.loaded) == 1 and not plugins.failures


def test_the_built_in_plugins_come_in_by_the_same_door(plugins: Plugins) -> None:
    assert not [failure for failure in plugins.failures if failure.distribution]  # others are other tests' wrong names
    assert {p.distribution for n, p in plugins.loaded.items() if n in ("architectures", "fusions", "losses")} == {
        "fbt-plugins"
    }
    assert {"timm"} <= set(plugins.registries.architectures.module_dict)
    assert {"L2GFusion"} <= set(plugins.registries.fusions.module_dict)
    losses = {"InfoNCELoss", "OFALoss", "MSELoss", "KDLoss", "CrossEntropyLoss"}
    assert losses <= set(plugins.registries.losses.module_dict)
