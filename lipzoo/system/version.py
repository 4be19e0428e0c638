"""The version of this library."""

import importlib.metadata

VERSION = importlib.metadata.version("lipzoo")
