"""The same as ``fbt search``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("search")
