"""How a command ends: what it says, and its exit code."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fbt_plugins.errors import ConfigError, FBTError, run


class Broken(Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise FBTError("images/7.png is no readable image")


def ended(main, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as end:
        run(main)
    return end.value.code, capsys.readouterr().err.splitlines()


def test_every_problem_is_a_line_and_the_code_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ConfigError(["one", "two"])

    assert ended(main, capsys) == (2, ["error: one", "error: two"])


def test_a_data_workers_error_is_the_same_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(Broken(), num_workers=1)
    assert ended(lambda: list(loader), capsys) == (2, ["error: images/7.png is no readable image"])


def test_success_and_interruption_have_their_own_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert ended(lambda: None, capsys) == (0, [])
    assert ended(interrupted, capsys) == (130, ["stopped"])


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // int(torch.zeros(1)))
