"""Neural networks whose sensitivity is bounded, and the proof of the bound.

!!! example

    ```python
    import lipzoo
    loaded = lipzoo.load("runs/digits_mlp/latest")
    print(lipzoo.Certificate.of(loaded.model))
    ```
"""

import importlib
from typing import TYPE_CHECKING, Any

from lipzoo.system.version import VERSION

if TYPE_CHECKING:
    from lipzoo import constraints as constraints
    from lipzoo import models as models
    from lipzoo import optim as optim
    from lipzoo import testing as testing
    from lipzoo.certify.certificate import Certificate as Certificate
    from lipzoo.interop.from_layers import from_layers as from_layers
    from lipzoo.interop.to_torch import to_torch as to_torch
    from lipzoo.theory import space as space
    from lipzoo.theory.bound import Bound as Bound
    from lipzoo.train.load import load as load

__version__ = VERSION

HOMES = {
    "Bound": "lipzoo.theory.bound",
    "Certificate": "lipzoo.certify.certificate",
    "from_layers": "lipzoo.interop.from_layers",
    "load": "lipzoo.train.load",
    "to_torch": "lipzoo.interop.to_torch",
}
ROOMS = {
    **{name: f"lipzoo.{name}" for name in ("constraints", "models", "optim", "testing")},
    "space": "lipzoo.theory.space",
}
"""Where what notebooks use lies. It is imported when it is first asked for: each takes a while."""


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return importlib.import_module(ROOMS[name])
    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module 'lipzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*HOMES, *ROOMS, "__version__"]
