"""Splices: which stages of a fusion model come from whom, written as in ``S1-3+T4`` or, by role, ``C1-3+M4``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import ConfigError

AUTO = "auto"
_OWNERS = {"S": "student", "T": "teacher"}
_PIECE = re.compile(r"([STCM])(?:(\d+)(?:-(\d+))?|(head))")
_LOCALITY = {"cnn": 0, "hybrid": 1, "attention": 2, "mlp": 2}


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
    """

    pieces: tuple[Piece, ...]

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
        if text == AUTO:
            text = default(count, first)

        def wrong(why: str) -> ConfigError:
            return ConfigError(f"splice {text!r}: {why}")

        pieces: list[Piece] = []
        letters: set[str] = set()
        for part in str(text).split("+"):
            match = _PIECE.fullmatch(part)
            if match is None:
                raise wrong(
                    f"{part!r} is not a piece; write S or T and stage numbers, as in 'S1-3+T4', or 'Thead' at the end; "
                    "or by role C and M, as in 'C1-3+M4'"
                )
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
            raise wrong(f"S and T, or C and M, not both in one; C is the {_OWNERS[first]} here")
        owners = [p.owner for p in pieces]
        if len(set(owners)) < 2:
            example = default(count, first)
            raise wrong(f"it never switches: all of it is {_OWNERS[owners[0]]}; for example {example!r} does")
        if any(a == b for a, b in pairwise(owners)):
            raise wrong("two pieces of one model stand side by side; write them as one, as in 'S1-3'")
        if any(not p.stages for p in pieces[:-1]):
            raise wrong("a head can only be the last piece")
        if pieces[0].first != 1:
            raise wrong(f"it must begin with stage 1, which takes images, not with {pieces[0]}")
        if pieces[-1].last != count[owners[-1]]:
            raise wrong(
                f"it must end with the {_OWNERS[owners[-1]]}'s last stage, {count[owners[-1]]}, which its head follows"
            )
        reached = {"S": 0, "T": 0}
        for piece in pieces:
            if piece.first <= reached[piece.owner] or (piece.first == 1 and piece is not pieces[0]):
                raise wrong(f"{piece} would go back: a model's stages can only run forward, and stage 1 takes images")
            reached[piece.owner] = piece.last
        return cls(tuple(pieces))


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
            problems.append(f"splice {str(text)!r} is there twice")
        found.append(splice)
    if not found and not problems:
        problems.append("splice: the list is empty; 'auto' is the usual one")
    if problems:
        raise ConfigError(problems)
    return found


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
