"""The same as ``fbt test``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("test")
