"""What timm's readers read, at any place; and what is refused since it is a stream."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from fbt_plugins.data import ImageDataset
from fbt_plugins.data.timm_data import TimmDataset
from fbt_plugins.errors import ConfigError, FBTError


def stored(seed: int, kind: str = "png") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pixels(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)).permute(2, 0, 1)


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def same(data: ImageDataset, seeds: list[int]) -> bool:
    return len(data) == len(seeds) and all(torch.equal(data[n]["inputs"], pixels(seed)) for n, seed in enumerate(seeds))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    root = tmp_path / "shards"
    root.mkdir()
    first = {"a.png": stored(0), "a.cls": b"2\n", "b.json": b'{"cls": 0, "by": "me"}', "b.png": stored(1)}
    second = {
        "d/c.png": stored(2),
        "d/c.txt": b"a cat",
        "d/e.seg.png": b"no image",
        "d/e.png": stored(3),
        "d/e.cls": b"1",
    }
    archive(root / "x-train-000.tar", first)
    archive(root / "x-train-001.tar", second)
    archive(root / "x-val-000.tar", {"z.png": stored(4), "z.cls": b"1"})
    return root


def test_shards_are_read_at_any_place(shards: Path) -> None:
    data = TimmDataset("wds/x", str(shards), split="train")
    assert same(data, [0, 1, 2, 3]) and data.labels == [2, 0, -1, 1] and data.classes == ("0", "1", "2")
    assert data.num_labelled == 3 and data.name_of(2).endswith("x-train-001.tar: d/c.png")
    for split, seeds in (("val", [4]), ("all", [0, 1, 2, 3, 4]), ("x-train-{001..001}.tar|2", [2, 3])):
        assert same(TimmDataset("wds/x", str(shards), split=split), seeds)
    (shards / "_info.json").write_text(json.dumps({"splits": {"few": {"filenames": ["x-val-000.tar"]}}}))
    assert same(TimmDataset("wds/x", str(shards), split="few"), [4])
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as other:  # a worker process reads on its own
        assert torch.equal(other.submit(data.__getitem__, 3).result()["inputs"], data[3]["inputs"])
    assert same(pickle.loads(pickle.dumps(data)), [0, 1, 2, 3])


def test_shards_that_cannot_be_read_are_one_line(shards: Path) -> None:
    path = shards / "x-val-000.tar"
    whole = path.read_bytes()
    for content, line in (
        (b"no tar at all" * 100, "x-val-000.tar: .*shards are plain .tar files"),
        (whole[:700], "x-val-000.tar"),
    ):
        path.write_bytes(content)
        with pytest.raises(FBTError, match=line):
            TimmDataset("wds/", str(shards), split="val")
    archive(path, {"z.png": stored(4), "z.cls": b"cat"})
    with pytest.raises(FBTError, match=r"z.cls says 'cat', which is no class number"):
        TimmDataset("wds/", str(shards), split="val")
    with pytest.raises(FBTError, match="3 shards, and none has 'test' in its name"):
        TimmDataset("wds/", str(shards), split="test")
    with pytest.raises(FBTError, match=r"no shard .*x-9.tar"):
        TimmDataset("wds/", str(shards), split="x-{9..9}.tar")


def test_folders_and_archives_are_numbered_as_timm_does(tmp_path: Path) -> None:
    for number, name in enumerate(("train/class10", "train/class9", "val/class9")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.png").write_bytes(stored(number))
    (tmp_path / "train" / "class9" / "y.png").write_bytes(b"")
    data = TimmDataset("", str(tmp_path))
    assert data.classes == ("class9", "class10") and data.labels == [0, 1] and same(data, [1, 0])
    assert len(data.fingerprint()) == 64
    with pytest.raises(FBTError, match=r"y.png is empty .*; mend or remove it"):
        TimmDataset("folder", str(tmp_path), on_error="stop")
    tar = archive(tmp_path / "some.tar", {"b/x.png": stored(0), "a/y.png": stored(1)})
    packed = TimmDataset("", str(tar))
    assert packed.classes == ("a", "b") and packed.labels == [0, 1] and same(packed, [1, 0])
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "x.png").write_bytes(stored(5))
    assert TimmDataset("folder", str(flat)).classes == ()


def test_torchvisions_come_by_timms_names(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "x.png").write_bytes(stored(len(name)))
    data = TimmDataset("torch/image_folder", str(tmp_path))
    assert data.classes == ("cat", "dog") and data.labels == [0, 1]
    with pytest.raises(FBTError, match=r"timm: torch/cifar10 .*Dataset not found"):
        TimmDataset("torch/cifar10", str(tmp_path))


def test_hugging_faces_are_read_by_timms_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for ``datasets``, which is no part of the tests' environment."""

    class Table:
        info = type("Info", (), {"features": {}, "splits": {}})()

        def cast_column(self, *_: Any) -> Table:
            return self

        def remove_columns(self, *_: Any) -> list[dict[str, Any]]:
            return [{"label": 1}, {"label": -1}, {"label": None}]

        def __len__(self) -> int:
            return 3

        def __getitem__(self, n: int) -> dict[str, Any]:
            content = b"no image" if n == 1 else stored(n)
            return {"image": {"bytes": content, "path": f"{n}.png"}, "label": self.remove_columns()[n]["label"]}

    fake: Any = ModuleType("datasets")
    fake.load_dataset = lambda *_, **__: Table()
    fake.Image = lambda decode: None
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    data = TimmDataset("hfds/some/where")
    assert data.labels == [1, -1, -1] and data.classes == ("0", "1")
    assert data[1]["index"] == 2 and torch.equal(data[1]["inputs"], pixels(2)) and data.failed.tolist() == [0, 1, 0]
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FBTError, match=r"needs Hugging Face's datasets: pip install datasets"):
        TimmDataset("hfds/some/where")


@pytest.mark.parametrize("build", [TimmDataset, lambda name: TimmDataset.describe([], name=name)])
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tfds/imagenet2012", "'tfds/imagenet2012' is read as a stream, .* could not be taken up exactly; save it as"),
        ("hfids/x", "read it as 'hfds/...'"),
        ("wdss/x", "no data set 'wdss/x'; did you mean 'wds'"),
    ],
)
def test_streams_are_refused_without_data(build: Callable[[str], object], name: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        build(name)
