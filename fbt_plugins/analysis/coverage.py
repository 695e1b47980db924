"""Which models of whole libraries can be cut, and how: a report that can be stopped and taken up again."""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from ..errors import FBTError, one_line
from ..models.declaration import Catalogue
from ..models.proof import CannotRunError
from ..models.weightless import on_meta
from ..registry.loading import load_plugins
from ..registry.registries import ARCHITECTURES

Row = dict[str, Any]
CLASSES = 7
"""Of the models that are built: another number than any of them has by itself."""

_MODELS_OF_A_WORKER = 40
"""Then another process takes its place: what hundreds of networks leave behind would fill the memory."""


def catalogues(types: Iterable[str] | None = None) -> dict[str, Catalogue]:
    """The architectures that can name all that they build, by type."""
    found = {name: getattr(build, "catalogue", None) for name, build in ARCHITECTURES.module_dict.items()}
    return {name: c for name, c in found.items() if c is not None and (types is None or name in types)}


def _config(type_: str, name: str) -> dict[str, Any]:
    config = catalogues()[type_].config
    return {"type": type_, "name": name, "num_classes": CLASSES} if config is None else config(name)


_BUILT: dict[tuple[str, str], Any] = {}
"""The model that was cut last, if it has weights."""


def cut_one(type_: str, name: str) -> Row:
    """Cuts a model, without weights where it can be: "parameters", "way", "family", "layouts", "image_size"."""
    _BUILT.clear()
    weightless = catalogues()[type_].config is None
    with on_meta() if weightless else nullcontext():
        model = ARCHITECTURES.build(_config(type_, name))
    if not weightless:
        _BUILT[type_, name] = model
    return {
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "way": model.way,
        "family": model.family,
        "layouts": [str(spec) for spec in model.specs],
        "image_size": list(model.image_size),
    }


def prove_one(type_: str, name: str) -> Row:
    """Proves a cut with perturbed weights at the model's own image size; "proof" is what was compared."""
    proof = (_BUILT.pop((type_, name), None) or ARCHITECTURES.build(_config(type_, name))).verify()
    return {"proof": {key: getattr(proof, key) for key in ("gradients", "buffers", "parameters", "batch_sizes")}}


_STEPS = {"cut": (cut_one, "refused"), "proof": (prove_one, "wrong")}


def take(step: str, type_: str, name: str) -> Row:
    """One step for one model.

    Returns:
        "step", "type", "name", "kind", "seconds", and what the step found; or why not, "refused" (also of a proof that
        cannot be run here) or "wrong".
    """
    function, failed = _STEPS[step]
    row: Row = {"type": type_, "name": name, "step": step}
    start = time.perf_counter()
    try:
        row["kind"] = catalogues()[type_].kind(name)
        row |= function(type_, name)
    except FBTError as error:
        failed = "refused" if isinstance(error, CannotRunError) else failed  # on this machine, such as without a GPU
        row[failed] = " ".join(str(error).split()).removeprefix(f"{_config(type_, name).get('path', name)}: ")
    except Exception as error:  # a model of a library may fail in any way; the report says how
        row[failed] = f"error: {one_line(error)}"
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def _work(step: str, type_: str, name: str, largest: float) -> list[Row]:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # what libraries say about their own old names
    load_plugins()
    return steps(step, type_, name, largest)


def steps(step: str, type_: str, name: str, largest: float) -> list[Row]:
    """What :func:`take` gives, and of a network that is a kind of its own, built with weights already, the proof."""
    rows = [take(step, type_, name)]
    if step == "cut" and catalogues()[type_].config is not None and smallest(rows, largest):
        rows.append(take("proof", type_, name))
    return rows


def names_of(types: Sequence[str] | None, libraries: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """(type, name) of every model that the architectures can name.

    Args:
        types: of architectures; None is all that have a catalogue.
        libraries: only models that are named "library/model" after one of these.
    """
    every = [(type_, name) for type_, c in catalogues(types).items() for name in c.names()]
    return [(t, n) for t, n in every if libraries is None or n.partition("/")[0] in libraries]


def cover(
    models: Sequence[tuple[str, str]], state: Path, workers: int, largest: float
) -> Iterator[tuple[int, int, Row]]:
    """Cuts models, then proves the smallest of each kind.

    Args:
        models: see :func:`names_of`.
        state: a file of JSON lines; what is in it already is not done again.
        workers: processes.
        largest: millions of parameters up to which a model is proved.

    Yields:
        (done, of how many, row) for each row, old ones first.
    """
    done = _read(state)
    jobs = [("cut", *model) for model in models]
    total = len(jobs)
    rows: list[Row] = []
    for row in _run(jobs, done, state, workers, largest):
        rows.append(row)
        total += row["step"] == "proof"
        yield len(rows), total, row
    proofs = [("proof", row["type"], row["name"]) for row in smallest(rows, largest)]
    proofs = [job for job in proofs if job not in {(row["step"], row["type"], row["name"]) for row in rows}]
    total += len(proofs)
    for row in _run(proofs, done, state, workers, largest):
        rows.append(row)
        yield len(rows), total, row


def smallest(rows: Iterable[Row], largest: float) -> list[Row]:
    """The smallest model of each kind that is cut and has no more than ``largest`` million parameters."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["step"] == "cut" and "refused" not in row and row["parameters"] <= largest * 1e6:
            key = (row["type"], row["kind"])
            if key not in best or row["parameters"] < best[key]["parameters"]:
                best[key] = row
    return list(best.values())


def _read(state: Path) -> dict[tuple[str, str, str], Row]:
    """Rows by (step, type, name); a line that was cut off by the end of a run does not count."""
    done = {}
    for line in state.read_text(encoding="utf-8").splitlines() if state.exists() else ():
        try:
            row = json.loads(line)
            done[row["step"], row["type"], row["name"]] = row
        except (json.JSONDecodeError, KeyError):
            continue
    return done


def _run(
    jobs: Sequence[tuple[str, str, str]],
    done: dict[tuple[str, str, str], Row],
    state: Path,
    workers: int,
    largest: float,
) -> Iterator[Row]:
    yield from (done[job] for job in jobs if job in done)
    left = [job for job in jobs if job not in done]
    if not left:
        return
    with (
        ProcessPoolExecutor(
            workers, get_context("spawn"), _end_with_parent, max_tasks_per_child=_MODELS_OF_A_WORKER
        ) as pool,
        state.open("a", encoding="utf-8") as file,
    ):
        futures = [pool.submit(_work, *job, largest) for job in left]
        try:
            for future in as_completed(futures):
                for row in future.result():
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    yield row
        except BrokenProcessPool as error:
            what = "a process was ended from outside, maybe for want of memory"
            mend = "give the same command again, with fewer workers"
            raise FBTError(f"{what}; {state} has what is done: {mend}") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def markdown(rows: Sequence[Row]) -> str:
    """The report: for each architecture a line, a table of libraries if it has several, one of kinds, and reasons."""
    from tabulate import tabulate

    cut = [row for row in rows if row["step"] == "cut"]
    proofs = {(row["type"], row["name"]): row for row in rows if row["step"] == "proof"}
    parts = []
    for type_ in dict.fromkeys(row["type"] for row in cut):
        own = [row for row in cut if row["type"] == type_]
        kinds: dict[str, list[Row]] = {}
        for row in own:
            kinds.setdefault(row.get("kind", "?"), []).append(row)
        table = []
        for kind, members in sorted(kinds.items()):
            good = [m for m in members if "refused" not in m]
            proof = next(((m, proofs[type_, m["name"]]) for m in good if (type_, m["name"]) in proofs), None)
            table.append(
                (
                    kind,
                    f"{len(good)} of {len(members)}",
                    "/".join(sorted({m["way"] for m in good})),
                    "/".join(sorted({m["family"] for m in good})),
                    _proof(*proof) if proof else "",
                )
            )
        good = [row for row in own if "refused" not in row]
        proved = sum(1 for row in own if "proof" in proofs.get((type_, row["name"]), {}))
        wrong = [row for row in own if "wrong" in proofs.get((type_, row["name"]), {})]
        some = sum(1 for members in kinds.values() if any("refused" not in m for m in members))
        parts.append(
            f"## {type_}\n\n{len(good)} of {len(own)} models are cut, of {some} of {len(kinds)} kinds; "
            f"{proved} kinds are proved, {len(wrong)} proofs failed.\n"
        )
        if all("/" in row["name"] for row in own):
            head = ("library", "networks", "cut", "proved", "proofs failed")
            parts.append(tabulate(_by_library(own, proofs), head, tablefmt="github") + "\n")
        headers = ("kind", "models cut", "way", "family", "proved with")
        parts.append(tabulate(table, headers, tablefmt="github") + "\n")
        refused = [(row["name"], row["refused"].removeprefix(f"{row['name']}: ")) for row in own if "refused" in row]
        left = [row for row in own if "refused" in proofs.get((type_, row["name"]), {})]
        refused += [(row["name"], f"cut, but not proved: {proofs[type_, row['name']]['refused']}") for row in left]
        refused += [(row["name"], f"WRONG: {proofs[type_, row['name']]['wrong']}") for row in wrong]
        if refused:
            parts.append(f"Refused:\n\n{tabulate(refused, ('model', 'reason'), tablefmt='github')}\n")
    return "\n".join(parts)


def _by_library(cut: Sequence[Row], proofs: Mapping[tuple[str, str], Row]) -> list[tuple[str, int, int, int, int]]:
    """Of networks called "library/network": how many there are, are cut, proved and wrong; then of all together."""
    counts: dict[str, list[int]] = {}
    for row in cut:
        proof = proofs.get((row["type"], row["name"]), {})
        found = (True, "refused" not in row, "proof" in proof, "wrong" in proof)
        for name in (row["name"].partition("/")[0], "all"):
            counts[name] = [a + b for a, b in zip(counts.get(name, [0] * 4), found, strict=True)]
    counts["all"] = counts.pop("all")
    return [(name, *numbers) for name, numbers in counts.items()]  # type: ignore[misc]


def _proof(model: Row, proof: Row) -> str:
    if "refused" in proof:
        return ""
    if "wrong" in proof:
        return f"{model['name']}: WRONG"
    return f"{model['name']} ({proof['proof']['gradients']} gradients, {proof['proof']['buffers']} buffers)"
