"""``python -m fbt_plugins.commands``: ``fbt`` for processes that others start, whose messages are their starters'."""

import sys

from ..errors import run
from . import fbt

if __name__ == "__main__":
    run(lambda: fbt(sys.argv[1:]))
