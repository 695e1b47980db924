"""Splices: which stages of a fusion model come from whom, written as in ``S1-3+T4`` or, by role, ``C1-3+M4``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..errors import ConfigError, nearest

AUTO = "auto"
_OWNERS = {"S": "student", "T": "teacher"}
_PIECE = re.compile(r"([STCM])(?:(\d+)(?:-(\d+))?|(head))")
_LOCALITY = {"cnn": 0, "hybrid": 1, "attention": 2, "mlp": 2}
_LETTERS = "S is the student, T the teacher, C the more local of the two, M the other"


def more_local(student: str, teacher: str) -> str:
    """Which of two models gives the first stages of a fusion model, by their families.

    FBT's fusion models begin with the CNN, whoever of the two it is (arXiv 2410.12342). A hybrid lies between a CNN and
    the others; of two equal ones, and of attention with an MLP, the student begins. Both are our choice.

    Args:
        student, teacher: "cnn", "hybrid", "attention" or "mlp".

    Returns:
        "S" or "T".
    """
    return "T" if _LOCALITY[teacher] < _LOCALITY[student] else "S"


@dataclass(frozen=True)
class Piece:
    """Consecutive stages of one model.

    Attributes:
        owner: "S" (student) or "T" (teacher).
        first, last: stage numbers from 1, both included; ``first > last`` is no stage, the head alone.
    """

    owner: str
    first: int
    last: int

    @property
    def stages(self) -> range:
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        if not self.stages:
            return f"{self.owner}head"
        return f"{self.owner}{self.first}" + (f"-{self.last}" if self.last > self.first else "")


@dataclass(frozen=True)
class Junction:
    """A place where a splice switches models.

    Attributes:
        giver, last: the model whose activations arrive, and the stage that made them.
        taker, first: the model that takes them, and the stage (one more than it has: its head) that they enter.
    """

    giver: str
    last: int
    taker: str
    first: int

    @property
    def name(self) -> str:
        """A name that a ModuleDict accepts, such as "S3_T4"."""
        return f"{self.giver}{self.last}_{self.taker}{self.first}"


@dataclass(frozen=True)
class Splice:
    """A row of pieces that starts at an image and ends in a head.

    Attributes:
        pieces: at least two, owners alternating; the first starts at stage 1, the last owns the head.
        written: how it was asked for, "auto" or "C1-3+M4"; splices of the same pieces are equal all the same.
    """

    pieces: tuple[Piece, ...]
    written: str = field(default="", compare=False)

    def __str__(self) -> str:
        return "+".join(map(str, self.pieces))

    @property
    def start(self) -> Piece:
        """The piece whose activations its model has computed anyway."""
        return self.pieces[0]

    @property
    def junctions(self) -> list[Junction]:
        pairs = pairwise(self.pieces)
        return [Junction(a.owner, a.last, b.owner, b.first) for a, b in pairs]

    @classmethod
    def parse(cls, text: str, student_stages: int = 4, teacher_stages: int = 4, first: str = "S") -> Splice:
        """Reads ``S1-3+T4``, ``S1-2+T3-4``, ``S1+T2+S3-4``, ``S1-3+Thead``; ``C1-3+M4``, ``C1-3+Mhead``; ``auto``.

        S is the student and T the teacher. C is the one that ``first`` names, the more local of the two (the paper's
        CNN), and M the other.

        Args:
            text: the splice; "auto" is all stages of C but the last, then M's last: ``C1-3+M4``.
            student_stages, teacher_stages: how many stages the two models have.
            first: "S" or "T": which of them C is (:func:`more_local`).

        Returns:
            The splice by owner: its pieces are S's and T's, whatever the text says.

        Raises:
            ConfigError: if it cannot be read, names a stage that is not there, or never switches.
        """
        count = {"S": student_stages, "T": teacher_stages}
        roles = {"S": "S", "T": "T", "C": first, "M": "T" if first == "S" else "S"}
        written = str(text)
        if text == AUTO:
            text = default(count, first)

        def wrong(why: str) -> ConfigError:
            return ConfigError(f"splice {text!r}: {why}")

        pieces: list[Piece] = []
        letters: set[str] = set()
        parts = str(text).split("+")
        for part in parts:
            match = _PIECE.fullmatch(part)
            if match is None:
                raise wrong(_not_a_piece(written, part))
            letters.add(match[1])
            owner = roles[match[1]]
            n = count[owner]
            start = int(match[2]) if match[2] else n + 1
            last = int(match[3] or match[2]) if match[2] else n
            if match[2] and not 1 <= start <= last <= n:
                who = _OWNERS[owner]
                raise wrong(f"{part!r} is out of range: the {who} has stages 1 to {n}")
            pieces.append(Piece(owner, start, last))
        if letters & set("ST") and letters & set("CM"):
            example = "+".join(f"{piece.owner}{part[1:]}" for piece, part in zip(pieces, parts, strict=True))
            raise wrong(
                f"either S and T or C and M, not both in one; C is the {_OWNERS[first]} here: write {example!r}"
            )
        owners = [p.owner for p in pieces]
        if len(set(owners)) < 2:
            example = default(count, first)
            raise wrong(f"it never switches: all of it is {_OWNERS[owners[0]]}; for example {example!r} does")
        if any(a == b for a, b in pairwise(owners)):
            raise wrong("two pieces of one model stand side by side; write them as one, as in 'S1-3'")
        if any(not p.stages for p in pieces[:-1]):
            raise wrong("a head can only be the last piece")
        if pieces[0].first != 1:
            raise wrong(f"it must begin with stage 1, which takes images, not with {parts[0]}")
        if pieces[-1].last != count[owners[-1]]:
            raise wrong(
                f"it must end with the {_OWNERS[owners[-1]]}'s last stage, {count[owners[-1]]}, which its head follows"
            )
        reached = {"S": 0, "T": 0}
        for piece, part in zip(pieces, parts, strict=True):
            if piece.first <= reached[piece.owner] or (piece.first == 1 and piece is not pieces[0]):
                raise wrong(f"{part} would go back: a model's stages can only run forward, and stage 1 takes images")
            reached[piece.owner] = piece.last
        return cls(tuple(pieces), written)


def _not_a_piece(text: str, part: str) -> str:
    """What to write in place of something that no splice has."""
    mended = re.sub("HEAD", "head", text.replace(" ", "").upper())
    if mended != text and all(map(_PIECE.fullmatch, mended.split("+"))):
        return f"{part!r} is not a piece; did you mean {mended!r}?"
    if part == text and (near := nearest(text, [AUTO])).startswith("; did"):
        return f"{part!r} is not a piece{near}"
    if re.fullmatch(r"[A-Za-z](\d+(-\d+)?|head)", part):
        return f"{part!r} is not a piece: there is no model {part[0]!r}; {_LETTERS}"
    return (
        f"{part!r} is not a piece; write S or T and stage numbers, as in 'S1-3+T4', or 'Thead' at the end; by role C "
        "and M, as in 'C1-3+M4'"
    )


def parse_all(
    texts: str | Sequence[str], student_stages: int = 4, teacher_stages: int = 4, first: str = "S"
) -> list[Splice]:
    """Reads one splice, or a list of different ones; the arguments are those of :meth:`Splice.parse`.

    Raises:
        ConfigError: with a line for each that :meth:`Splice.parse` refuses; if there is none, or one is there twice; if
            it is something else.
    """
    if not isinstance(texts, str | list | tuple):
        raise ConfigError(f"splice must be one, as in 'S1-3+T4', or a list of them, not {texts!r}")
    found: list[Splice] = []
    problems: list[str] = []
    for text in [texts] if isinstance(texts, str) else texts:
        try:
            splice = Splice.parse(text, student_stages, teacher_stages, first)
        except ConfigError as error:
            problems += error.problems
            continue
        if splice in found:
            other = found[found.index(splice)].written
            same = "" if other == text else f": {other!r} is the same with these models"
            problems.append(f"splice {text!r} is there twice{same}")
        found.append(splice)
    if not found and not problems:
        problems.append("splice: the list is empty; 'auto' is the usual one")
    if problems:
        raise ConfigError(problems)
    return found


def in_words(splices: Sequence[Splice], families: Mapping[str, str]) -> str:
    """What the splices of a fusion model are with these models, who gives what, and why where nobody can see it.

    Args:
        splices: of one fusion model, as they were read.
        families: of the two models, by "student" and "teacher".

    Returns:
        "auto is T1-3+S4: the teacher (cnn) gives the first stages, the student (mlp) the rest".
    """
    who = {owner: f"the {role} ({families[role]})" for owner, role in _OWNERS.items()}
    shown = [str(s) if s.written in ("", str(s)) else f"{s.written} is {s}" for s in splices]
    text = ", ".join(shown) if len(splices) == 1 else f"one per step: {', '.join(shown)}"
    if len(splices) == 1 and len(splices[0].pieces) == 2:
        first, second = splices[0].pieces
        gives = ("the first stages", "the rest") if second.stages else ("the stages", "the head")
        text += f": {who[first.owner]} gives {gives[0]}, {who[second.owner]} {gives[1]}"
    roles = [s for s in splices if s.written == AUTO or set(s.written) & set("CM")]
    if not roles:
        return text
    c = more_local(families["student"], families["teacher"])
    if len(splices) > 1 or len(splices[0].pieces) > 2:
        text += f"; C is {who[c]}, M {who['T' if c == 'S' else 'S']}"
    if _LOCALITY[families["student"]] == _LOCALITY[families["teacher"]]:
        text += "; neither is more local than the other, so the student is first"
    elif "hybrid" in families.values():
        text += "; a hybrid counts as less local than a CNN and more than attention or an MLP"
    else:
        return text
    return f"{text} (a model's family=... says otherwise)"


def default(count: dict[str, int], first: str = "S") -> str:
    """What "auto" stands for, written out by owner."""
    second = "T" if first == "S" else "S"
    most, last = max(count[first] - 1, 1), count[second]
    return f"{Piece(first, 1, most)}+{Piece(second, last, last) if last > 1 else second + 'head'}"


def enumerate_splices(student_stages: int = 4, teacher_stages: int = 4, switches: int = 1) -> Iterator[Splice]:
    """All splices that keep the order of depth and switch exactly ``switches`` times, heads alone included.

    A stage is entered at the depth at which the other model was left; where the two have different numbers of stages,
    the first that begins there or deeper.

    Args:
        student_stages, teacher_stages: how many stages the two models have.
        switches: how many junctions, 1 or more.
    """
    count = {"S": student_stages, "T": teacher_stages}

    def grow(pieces: tuple[Piece, ...], left: int) -> Iterator[Splice]:
        for owner in "ST":
            first = 1
            if pieces:
                other = pieces[-1]
                if owner == other.owner:
                    continue
                first = -(-other.last * count[owner] // count[other.owner]) + 1
            if left == 0:
                yield Splice((*pieces, Piece(owner, first, count[owner])))
                continue
            for last in range(first, count[owner] + 1):
                yield from grow((*pieces, Piece(owner, first, last)), left - 1)

    yield from grow((), switches)
