"""The same as ``fbt benchmark``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("benchmark")
