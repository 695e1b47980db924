"""The same as ``fbt predict``."""

from fbt_plugins.commands import tool

if __name__ == "__main__":
    tool("predict")
