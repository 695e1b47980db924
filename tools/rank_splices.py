"""The same as ``fbt rank-splices``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("rank-splices")
