"""The same as ``fbt new-plugin``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("new-plugin")
