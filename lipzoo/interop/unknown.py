"""What is said of what is not known."""

from typing import Any

KNOWN = "Linear, LayerNorm, RMSNorm, Dropout in inference, relu, gelu, tanh, identity, and sequences of these"


def place(name: str) -> str:
    """How a layer is called in a sentence."""
    return f"layer {name}" if name else "the network"


def unknown(layer: Any, name: str) -> ValueError:
    """The error that names a layer, or a function, and its place."""
    kind = getattr(layer, "__qualname__", None) or type(layer).__qualname__
    where = f" ({place(name)})" if name else ""
    return ValueError(f"from_layers does not know {kind}{where}: it takes {KNOWN}")
