"""The same as ``fbt distill``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("distill")
