"""The same as ``fbt train``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("train")
