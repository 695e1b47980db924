"""Searches for a better splice of a fusion model, and for its settings, as an Optuna study."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import FBTError, Told, typed, user_path
from .arguments import Parser, extras

EXAMPLES = """\
examples:
  fbt search configs/search/fusion_ratio.py --workers 2
  fbt search configs/search/fusion_ratio.py --list
  fbt search configs/search/one_shot.py
  fbt search configs/search/study.py --pair convnext_resmlp --method fbt
  fbt search configs/search/fusion_ratio.py --cfg-options search.sampler=random search.trials=20
  fbt search configs/search/fusion_ratio.py --storage postgresql+psycopg://me@db.example.org/searches
  fbt train work_dirs/search/fusion_ratio/best.py

The config's search=dict(space={...}, ...) says what is chosen from; docs/guides/searching.md explains it. The same
command goes on after a stop or a crash: no trial is lost, none is run twice. Trials look at validation alone, never
at the test.
"""


def parse() -> Parser:
    parser = Parser("fbt search", __doc__, EXAMPLES)
    parser.add_shared("config", "--pair", "--method", "--cfg-options", "--device", "--workers", "--storage")
    parser.add_argument(
        "--out", type=user_path, metavar="DIR", help="folder of trials and results (default: work_dirs/search/NAME)"
    )
    parser.add_argument("--list", action="store_true", help="only show what is chosen from")
    return parser


def main(argv: Sequence[str]) -> int:
    parser = parse()
    args = parser.parse_args(argv)
    with extras("search,report"):  # imported late: --help and usage errors must not wait for the engine
        import matplotlib  # noqa: F401

        from ..config.hashing import config_hash
        from ..engine.loaders import open_all
        from ..jobs.study import FAILURES, SharedStudy, Slot, complaint, hidden
        from ..search.live_table import SearchScreen
        from ..search.one_shot import Finish, make_ranking, shared
        from ..search.results import write_results
        from ..search.search import Search, space_of
        from ..search.settings import Settings
    from ..config.loading import Arguments, blaming, load_config
    from ..console import relative, say

    config = load_config(args.config, args.cfg_options, args.pair, args.method, Arguments(device=args.device))
    with blaming(args.config):
        settings, space = Settings.of(config), space_of(config)
    if args.list:
        print("\n".join(space.lines()))
        return 0
    fusion = shared(space) if settings.one_shot else None
    name = ".".join([Path(args.config).stem, *([args.pair] if args.pair else [])])
    out = args.out or Path("work_dirs") / "search" / name
    # Other runs, or another space, are another study; more trials of the same are not.
    part = config_hash({**config.to_dict(), "search": {**config.search, "trials": None}})[:8]
    url = args.storage or f"sqlite:///{out / 'study.db'}"
    study = SharedStudy(f"{name}-{part}", url, Slot, settings.directions)
    trials = out / f"trials-{part}"
    open_all({"": config})
    if fusion is not None:
        one_shot = out / f"one_shot-{part}"
        try:
            make_ranking(config, fusion, one_shot)
        except Told as error:
            say("stopped  the one-shot run has saved what it has; the same command goes on")
            return 128 + error.signal
        search: Search = Finish(study, config, fusion, trials, one_shot, args.workers)
    else:
        search = Search(study, config, space, trials, args.workers)
    try:
        stopped = search.work(SearchScreen(search))
    except FAILURES as error:  # trials are told to save when this process ends, and are free when heartbeats stop
        raise FBTError(f"--storage: {complaint(error)}; the same command goes on") from error
    if search.best():
        command = hidden(typed("fbt search", *argv))
        paths = write_results(search, out, command)
        say(f"results  {', '.join(relative(path) for path in paths)}")
        say(f"train it {typed('fbt train', relative(out / 'best.py'))}")
    if stopped:
        say(f"stopped  {len(search.tried)} of {len(search.wanted)} trials are done; the same command goes on")
        return 128 + stopped
    for failed, reason in search.failed.items():
        print(f"failed   {failed}: {reason}", file=sys.stderr)
    return 1 if search.failed else 0
