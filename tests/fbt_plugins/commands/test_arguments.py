"""Arguments: what is wrong with them in a line, and options as mmengine reads them."""

import pytest

from fbt_plugins.commands.train import parse


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
    with pytest.raises(SystemExit) as end:
        parse().parse_args(["config.py", *typed.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith(f"error: {reason}")


def test_options_are_read_as_mmengine_reads_them() -> None:
    typed = ["a.b=1", "c=[x,2]", "d=None", "e=text", "f=(1,2)", "g=True", "h=1e-3"]
    args = parse().parse_args(["config.py", "--cfg-options", *typed, "--cfg-options", "a.b=2"])
    assert args.cfg_options == {"a.b": 2, "c": ["x", 2], "d": None, "e": "text", "f": (1, 2), "g": True, "h": 1e-3}
    assert args.cfg_options_typed == [*typed, "a.b=2"]
