"""Every command in a document is one that works: it is parsed by its own parser, and all that it names is there.

Some commands need what is not here: data, weights from a network, GPUs, a cluster, a database. The document must then
name that thing near the command: in the same paragraph, in a comment of the block, or in the paragraph above the block
(see ``SAID``). Those are checked only. What is left of ``fbt`` runs whole, trainings for one step (most of it is slow).
"""

from __future__ import annotations

import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command_rules import FLAGSHIP, MADE, TOOL, WrongCommandError, check
from torchvision.transforms.functional import to_pil_image
from typed_commands import ROOT, Typed, commands_of, typed_commands, untold

from fbt_plugins.commands import MODULES
from fbt_plugins.commands import fbt as run_fbt
from fbt_plugins.data import FashionMNISTMini
from fbt_plugins.errors import FBTError

SAID = {
    "CIFAR-10": "CIFAR-10",
    "CIFAR-100": "CIFAR-100",
    "Fashion-MNIST": "Fashion-MNIST|FASHION_MNIST",
    "ImageNet": "ImageNet",
    "a network": "network|download",
    "a GPU": "GPU",
    "GPUs": "GPU|machine|processes",
    "a cluster": "SLURM|cluster",
    "a database": "PostgreSQL|database|machine",
    "a library": "librar",
}
"""How a document says that a command needs something."""

# ---- tests ----------------------------------------------------------------------------------------------------------

ALL = typed_commands()
FILES = sorted({command.where.partition(":")[0] for command in ALL})


@pytest.mark.parametrize("name", FILES)
def test_commands_of_a_document_work_and_say_what_they_need(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASHION_MNIST", raising=False)
    wrong = []
    for command in (c for c in ALL if c.where.partition(":")[0] == name):
        try:
            needs = check(command.words, command.sentence)
        except WrongCommandError as error:
            wrong.append(f"{command}: {error}")
            continue
        if unsaid := [need for need in sorted(needs) if not re.search(SAID[need], command.around)]:
            wrong.append(f"{command}: say that it needs {' and '.join(unsaid)}")
    assert not wrong, "\n".join(wrong)


PAGE = """# A page

On GPUs:

```bash
folder=photos   # images
for seed in 0 1; do
    FASHION_MNIST=/data python tools/train.py x \\
        --seed $seed --data "$folder"
done && fbt configs
```

Say `fbt train
CONFIG` on a cluster, or `rm x`.

```text
fbt is no command here
```
"""


def test_commands_are_found_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    found = list(commands_of(tmp_path / "page.md", "page.md"))
    assert [(c.where, " ".join(c.words), c.sentence) for c in found] == [
        ("page.md:8", "python tools/train.py x --seed 0 --data photos", False),
        ("page.md:8", "python tools/train.py x --seed 1 --data photos", False),
        ("page.md:10", "fbt configs", False),
        ("page.md:13", "fbt train CONFIG", True),
    ]
    assert "On GPUs" in found[0].around and "images" in found[0].around and "FASHION_MNIST" in found[0].around
    assert "cluster" in found[3].around and "CONFIG" not in found[3].around


def test_there_are_commands() -> None:
    assert len(ALL) > 100 and {"README.md", "docs/reference/commands.md"} <= set(FILES)


def test_no_block_hides_commands() -> None:
    assert untold() == [], "such a block begins with ```sh"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("fbt trian x", "no command 'trian'"),
        ("fbt train no_such_config", "no config no_such_config"),
        ("fbt train fbt_convnext_resmlp --seeds 1", "does not take these arguments"),
        ("fbt train fbt_convnext_resmlp --cfg-options train_cfg.max_epoch=3", "unknown key 'max_epoch'"),
        ("python tools/train.py configs/cifar100.py --pair swin-t --method fbt", "no pair 'swin-t'"),
        ("fbt compare configs/fashion_mnist.py --methods fbtt", "no method 'fbtt'"),
        ("fbt search configs/search/fusion_ratio.py --cfg-options search.sampler=grd", "search.sampler: 'grd'"),
        ("fbt inspect resnte18", "timm has no resnte18"),
        ("fbt distill --data x --teacher timm:resnte18 --student timm:resnet18 --out out", "resnte18"),
        ("python tools/trian.py", "there is no tools/trian.py"),
        ("pip install .[nothing]", "no extra nothing"),
        ("pytest -m slwo", "no marker slwo"),
        ("curl x", "no rule covers 'curl'"),
    ],
)
def test_a_wrong_command_is_found(line: str, problem: str) -> None:
    with pytest.raises(WrongCommandError, match=re.escape(problem)):
        check(line.split())


def test_what_is_not_here_is_known() -> None:
    matrix = ["fbt", "train", "configs/cifar100.py", "--pair", "swin-t_resnet18", "--method", "fbt"]
    assert check(matrix) == {"CIFAR-100"}
    assert check(["torchrun", "--nproc_per_node", "8", "tools/train.py", "CONFIG"], sentence=True) == {"GPUs"}
    assert check(["fbt", "train", "fbt_convnext_resmlp"]) == set()


# ---- commands that run ----------------------------------------------------------------------------------------------

SPLITS = ("train", "val", "test")
QUICK = ["train_cfg.max_epochs=1", *(f"{split}_dataloader.num_batch_per_epoch=1" for split in SPLITS)]
"""The same run on one batch of each split."""
HOME = "/home/user"
"""What "~" is in the commands that were found."""
FAST = ("configs", "plugins", "new-plugin", "--help", "--version")
NOT_RUN = {
    *("--resume", "--teacher-checkpoint", "--all", "--compile", "--storage"),
    *("my_parts_net", "package.module:factory", "my_net.py:make"),
}
"""What goes on from something, takes minutes or more, or is the reader's."""


def as_run(command: Typed) -> list[str]:
    """The arguments of ``fbt`` for a command that can run here, shortened; none of another."""
    words = [TOOL.get(Path(word).name, word) if word.startswith("tools/") else word for word in command.words]
    words = [word.replace(HOME, str(Path.home())) for word in words]
    if words[0] == "python" and words[1] in MODULES:
        words[0] = "fbt"
    if words[0] != "fbt" or any(w.isupper() or "..." in w or NOT_RUN & {w, w.partition("=")[2]} for w in words):
        return []
    name, *rest = words[1:]
    if name in FAST:
        return [] if name == "new-plugin" and not rest else [name, *rest]
    if not rest or (command.sentence and rest[0].startswith("-")):  # the name of a command, or of its option
        return []
    if check(words) or rest[0] == "own_images" or MADE.match(rest[0]) or "my-parts" in rest[0]:
        return []
    if name == "train" and "--cfg-options" in rest and "--work-dir" not in rest:
        rest += ["--work-dir", "work_dirs/changed"]  # `fbt test CONFIG` is of the config as it is
    if name in ("train", "benchmark"):
        without = "test_" if rest[0].endswith("own_teacher") else " "  # a folder of one's own may have no test split
        quick = [] if "--check" in rest else ["--cfg-options", *(key for key in QUICK if not key.startswith(without))]
        return [name, *rest, *quick, *(["--rounds", "2"] if name == "benchmark" else [])]
    if name == "search":
        return [name, *rest, "--list"]
    return [name, *rest] if name in ("test", "predict", "export", "inspect", "distill") else []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a clone's, and a home."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "home" / "projects").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.fixture
def here(folder: Path, whole: Any) -> Path:
    """The same with a run that is finished, and some photos."""
    shutil.copytree(whole.work_dir, folder / "work_dirs" / FLAGSHIP)
    images = FashionMNISTMini("train")
    for photos in (folder / "photos", folder / "more_photos"):
        for index in range(200):  # ten classes, as the quickstart makes them
            (photos / str(index % 10)).mkdir(parents=True, exist_ok=True)
            to_pil_image(images.image(index)).save(photos / str(index % 10) / f"{index}.png")
    shutil.copy(folder / "photos" / "0" / "0.png", folder / "photo.jpg")
    return folder


@pytest.mark.usefixtures("folder")
def test_quick_commands_run(capsys: pytest.CaptureFixture[str]) -> None:
    quick = {tuple(as_run(command)) for command in ALL if set(command.words) & set(FAST)} - {()}
    assert len(quick) > 5
    for words in sorted(quick):
        assert not run_fbt(words)
        assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_commands_of_a_document_run(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done: set[str] = set()
    for command in (c for c in ALL if c.where.partition(":")[0] == name):
        words = as_run(command)
        alike = re.sub(r"\d+", "0", " ".join(words))  # of several seeds one is enough
        if not words or words[0] in FAST or alike in done or ("onnx" in words and find_spec("onnxscript") is None):
            continue
        done.add(alike)
        for table in here.glob("*.csv"):  # another command's
            table.unlink()
        for file in (Path(word) for word in words if word.endswith(".pth")):
            if not file.exists():
                shutil.copy(next(file.parent.glob("epoch_*.pth")), file)
        capsys.readouterr()
        try:
            assert not run_fbt(words)
        except FBTError as error:
            raise AssertionError(f"{command}: {error}") from error
        assert capsys.readouterr().out
