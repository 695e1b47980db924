import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fbt_plugins.commands.train import parse
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


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("--lanucher none", "unrecognized arguments: --lanucher none"),
        ("--seed x", "argument --seed: invalid int value: 'x'"),
        ("--amp fp8", "argument --amp: invalid choice: 'fp8'"),
        ("--launcher ssh", "argument --launcher: invalid choice: 'ssh'"),
        ("--cfg-options model", "--cfg-options 'model': write key=value"),
        ("--cfg-options =3", "--cfg-options '=3': write key=value"),
        ("--cfg-options a=(1,2", "--cfg-options 'a=(1,2': brackets do not match"),
    ],
)
def test_wrong_arguments_are_one_line(typed: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = ended(lambda: parse().parse_args(["config.py", *typed.split()]), capsys)
    assert code == 2 and len(lines) == 1 and lines[0].startswith(f"error: {reason}"), lines


def test_options_are_read_as_mmengine_reads_them() -> None:
    typed = ["a.b=1", "c=[x,2]", "d=None", "e=text", "f=(1,2)", "g=True", "h=1e-3"]
    args = parse().parse_args(["config.py", "--cfg-options", *typed, "--cfg-options", "a.b=2"])
    assert args.cfg_options == {"a.b": 2, "c": ["x", 2], "d": None, "e": "text", "f": (1, 2), "g": True, "h": 1e-3}
    assert args.cfg_options_typed == [*typed, "a.b=2"]
