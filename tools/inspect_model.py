"""The same as ``fbt inspect``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("inspect")
