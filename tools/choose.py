"""The same as ``fbt choose``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("choose")
