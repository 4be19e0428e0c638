"""Neural networks whose sensitivity is bounded, and the proof of the bound.

!!! example

    ```python
    import lipzoo
    loaded = lipzoo.load("runs/digits_mlp/latest")
    print(lipzoo.Certificate.of(loaded.model))
    ```
"""

from typing import TYPE_CHECKING, Any

from lipzoo import constraints as constraints
from lipzoo import models as models
from lipzoo import optim as optim
from lipzoo.certify.certificate import Certificate as Certificate
from lipzoo.system.version import VERSION
from lipzoo.theory import space as space
from lipzoo.theory.bound import Bound as Bound

if TYPE_CHECKING:
    from lipzoo.train.checkpoint import load as load

__version__ = VERSION


def __getattr__(name: str) -> Any:
    if name == "load":  # Orbax takes a second to import; a notebook that only builds models need not wait.
        from lipzoo.train.checkpoint import load

        return load
    raise AttributeError(f"module 'lipzoo' has no attribute {name!r}")
