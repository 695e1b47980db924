"""The same as ``fbt compare``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("compare")
