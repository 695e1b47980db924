"""Reads weights from files and puts them into models. Nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import FBTError, is_number, nearest, one_line, short
from ..files import damage, read_json, signed, write_atomic

EMBEDDED = "embedded:"
SUFFIX = ".safetensors"
METADATA_KEY = "fbt_plugins"
"""The key of a safetensors file's metadata that is ours: a JSON object that describes the model."""

SIGNATURE_KEY = "fbt_plugins_sha256"
"""Beside it, the sha256 of that text and of the tensors."""

MANIFEST = "manifest.json"
"""Beside the teachers of a folder: by name, each file's sha256, accuracy, normalisation and recipe."""


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """What a folder's manifest says of its teachers; nothing where it has none.

    Raises:
        FBTError: if it cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    entries = read_json(path)
    ours = isinstance(entries, dict) and all(isinstance(e, dict) and "sha256" in e for e in entries.values())
    return entries if ours else {}  # other programs call files so, too


def embedded_manifest() -> dict[str, dict[str, Any]]:
    """What is shipped."""
    return read_manifest(embedded_folder())


def embedded_folder() -> Path:
    """Where the shipped teachers and their manifest are."""
    return Path(str(resources.files("fbt_plugins.data") / "teachers"))


def find_weights(source: str) -> Path:
    """The file behind a path or "embedded:NAME".

    Raises:
        FBTError: if there is none, or it is not the one that its folder's manifest speaks of.
    """
    if source.startswith(EMBEDDED):
        name, manifest = source.removeprefix(EMBEDDED), embedded_manifest()
        if name not in manifest:
            raise FBTError(f"checkpoint {source!r}: nothing of that name is shipped{nearest(name, manifest)}")
        path, mend = embedded_folder() / f"{name}{SUFFIX}", "reinstall"
    else:
        path = Path(source).expanduser()
        mend = "put the right one there, or delete it and its entry"
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*") if p.is_file()] if path.parent.is_dir() else []
        hint = (
            nearest(path.name, siblings, limit=5)
            or f"; shipped: {', '.join(EMBEDDED + n for n in embedded_manifest())}"
        )
        raise FBTError(f"checkpoint {source!r}: no such file{hint}")
    entry = read_manifest(path.parent).get(path.stem) if path.suffix == SUFFIX else None
    if entry is not None and file_sha256(path) != entry["sha256"]:
        raise FBTError(f"checkpoint {source!r}: {path} is not the file of its {MANIFEST} (sha256 differs); {mend}")
    return path


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a state dict: a safetensors file, a torch file (``weights_only``), or a checkpoint of ours (its student).

    Returns:
        The tensors by name, and what the file says about the model (may be empty).

    Raises:
        FBTError: if the file is missing, truncated or holds something else.
    """
    path = find_weights(source)
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        if path.suffix == SUFFIX:
            raise FBTError(f"checkpoint {source!r}: not a whole safetensors file ({one_line(error)})") from error
    else:
        text = about.get(METADATA_KEY, "{}")
        if about.get(SIGNATURE_KEY, signature := signature_of(state, text)) != signature:
            raise FBTError(f"checkpoint {source!r}: damaged (its sha256 is not the one it was written with)")
        return state, _metadata(text, source)
    state = load_plain(path)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if isinstance(state, dict):
        student = {k.removeprefix("student.net."): v for k, v in state.items() if str(k).startswith("student.net.")}
        state = student or state
    if not state or not is_state(state):
        raise FBTError(f"checkpoint {source!r}: it holds no state dict (a dict of tensors by name)")
    return state, {}


def _ends(path: Path) -> bool:
    """Whether a file has the end of a zip archive."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # the end is there, and damaged
        return False


def check_torch_file(path: Path) -> None:
    """Looks at a file's form without reading it.

    Raises:
        FBTError: if torch has not written it (torch writes zip archives, and wrote pickles before), or it is truncated.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":
        raise FBTError(
            f"checkpoint {str(path)!r}: truncated, or not a checkpoint (no file of torch's begins {start!r})"
        )
    if start == b"PK" and not _ends(path):
        raise FBTError(f"checkpoint {str(path)!r}: truncated, or not a checkpoint (its end is missing)")


def is_state(value: Any) -> bool:
    """Whether a value is a dict of plain tensors by name."""
    return isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) and v.layout is torch.strided and not (v.is_meta or v.is_quantized)
        for k, v in value.items()
    )


def signature_of(state: Mapping[str, Tensor], text: str) -> str:
    """sha256 of what a safetensors file of ours holds: what it says about the model, and its tensors."""
    digest = hashlib.sha256(text.encode())
    _update(digest, {name: state[name] for name in sorted(state)})
    return digest.hexdigest()


def _metadata(text: str, source: str) -> dict[str, Any]:
    """What a safetensors file says about its model.

    Raises:
        FBTError: if it is of another form than what we write.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise TypeError("not an object")
        for key in ("mean", "std"):
            values = found.get(key)
            if values is not None and not (
                values and all(map(is_number, values)) and (key == "mean" or min(values) > 0)
            ):
                raise TypeError(f"{key}: {short(values)}")
        size = found.get("input_size")
        if size is not None and not (len(size) == 2 and all(type(pixels) is int and pixels > 0 for pixels in size)):
            raise TypeError(f"input_size: {short(size)}")
        return found
    except (ValueError, TypeError, RecursionError) as error:
        raise FBTError(f"checkpoint {source!r}: what it says about its model is damaged ({one_line(error)})") from error


def save_plain(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes tensors and plain types as a file that is whole and signed, for :func:`load_plain`."""
    buffer = io.BytesIO()
    torch.save(dict(contents), buffer)
    write_atomic(path, *signed(buffer.getvalue()))


def load_plain(path: Path) -> Any:
    """``torch.load`` of tensors and plain types only.

    Raises:
        FBTError: if the file is truncated, no file of torch's, or would need code to be executed.
    """
    check_torch_file(path)
    try:
        wrong = damage(path)
    except OSError as error:
        raise FBTError(f"checkpoint {str(path)!r}: it cannot be read ({error.strerror})") from error
    if wrong:
        raise FBTError(f"checkpoint {str(path)!r}: truncated, or damaged ({wrong})")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each way in which a file can be wrong
        reason = " ".join(str(error).split()) or type(error).__name__
        if "weights_only" in reason or "Unsupported" in reason:
            raise FBTError(
                f"checkpoint {str(path)!r}: it holds more than tensors and plain values, so it is not loaded"
            ) from error
        raise FBTError(f"checkpoint {str(path)!r}: truncated, or not a checkpoint ({reason[:120]})") from error


def misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """How a state dict does not fit a model's own, in words; empty where every name, shape and kind of number does."""
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    parts = [f"{len(k)} {what} ({k[0]}, ...)" for k, what in ((missing, "missing"), (foreign, "unknown")) if k]
    if wrong:
        key, more = wrong[-1], f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        shapes = f"{tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model"
        parts.append(f"{key} is {shapes}{more}")
    elif other := [k for k in own if k in state and _kind(own[k]) != _kind(state[k])]:
        key, more = other[-1], f" ({len(other) - 1} more differ)" if len(other) > 1 else ""
        parts.append(f"{key} is {state[key].dtype} in the file and {own[key].dtype} in the model{more}")
    return " and ".join(parts)


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    """Whether it holds floating-point, complex or truth values; those of one kind are converted."""
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype is torch.bool


def load_weights(net: nn.Module, source: str, name: str, fresh: Sequence[str] = ()) -> dict[str, Any]:
    """Loads weights into a model; every name and every shape must fit.

    BatchNorm's counts of batches may be missing, as in files from before there were any; torch loads those too.

    Args:
        net: the model, changed in place.
        source: see :func:`read_weights`.
        name: what an error line calls the model.
        fresh: modules that stay as they are, whatever the file has for them.

    Returns:
        What the file says about the model (may be empty).

    Raises:
        FBTError: if the file cannot be read or does not fit.
    """
    state, metadata = read_weights(source)
    own = net.state_dict()
    kept = tuple(f"{module}." for module in fresh)
    counts = {k: own[k] for k in own if k.rpartition(".")[2] == "num_batches_tracked" and k not in state}
    state = {k: v for k, v in state.items() if not k.startswith(kept)} | {k: own[k] for k in own if k.startswith(kept)}
    state |= counts
    if problem := misfit(own, state):
        whose = metadata.get("name")
        other = f"; the file is of {whose}" if whose and whose != name else "; is it another model's?"
        hint = other if own.keys() != state.keys() or whose not in (None, name) else ""
        raise FBTError(f"checkpoint {source!r} does not fit {name}: {problem}{hint}")
    if next((p.is_meta for p in net.parameters()), False):
        return metadata  # a check without weights: that they fit is all there is to know
    net.load_state_dict(state)
    return metadata


def weights_sha256(model: nn.Module) -> str:
    """sha256 of a model's tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    _update(digest, model.state_dict())
    return digest.hexdigest()


def _update(digest: Any, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
