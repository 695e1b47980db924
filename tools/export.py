"""The same as ``fbt export``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("export")
