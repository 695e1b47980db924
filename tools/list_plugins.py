"""The same as ``fbt plugins``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("plugins")
