"""The version of this library."""

import importlib.metadata


def installed() -> str:
    """The version that was installed; a checkout that runs without having been is none."""
    try:
        return importlib.metadata.version("lipzoo")
    except importlib.metadata.PackageNotFoundError:
        return "0+checkout"


VERSION = installed()
