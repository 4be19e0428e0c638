"""What jax has compiled is kept on disk, so that the same program is compiled once.

It lies in `compiled` beside the data, apart for each processor and version of jax, and takes up to `LARGEST` bytes.
Where it cannot be kept, everything is compiled as without. jax checks what it reads: an entry that was cut off or
garbled is compiled anew. The user's own JAX_COMPILATION_CACHE_DIR and JAX_ENABLE_COMPILATION_CACHE come before this.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from lipzoo.system.errors import UserError
from lipzoo.system.files import expanded

LARGEST = 1 << 30
"""Bytes of what is kept for one processor and version."""
KEPT = 3
"""Processors and versions for which something is kept: those used last."""
WORTH = 0.05
"""Seconds of compilation from which on it is kept: what takes less is compiled as fast as it is read."""
THEIRS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


def data_dir() -> Path:
    """`$LIPZOO_DATA_DIR`, by default ~/.cache/lipzoo. Raises UserError if there is no home directory for it."""
    return expanded(os.environ.get("LIPZOO_DATA_DIR") or "~/.cache/lipzoo")


def keep_compiled() -> None:
    """From here on what jax compiles is kept, unless the user has said otherwise or there is no place for it.

    Programs that have not imported jax yet compile nothing: they only start others.
    """
    if "jax" not in sys.modules or any(name in os.environ for name in THEIRS):
        return
    with contextlib.suppress(OSError, UserError):
        folder = _prepared(data_dir() / "compiled")
        import jax  # Imported before, see above.

        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)


def forget_compiled() -> None:
    """From here on nothing is kept, and nothing is read."""
    import jax  # The caller has it: this file is imported by what has to start at once.

    jax.config.update("jax_enable_compilation_cache", False)


def _prepared(above: Path) -> Path:
    """The folder of this processor and version, which can be written to and holds no more than it may."""
    folder = above / _machine()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        os.utime(folder)
    others = sorted(above.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in others[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    _shrink(folder)
    return folder


def _shrink(folder: Path) -> None:
    """Removes what was written first, down to half of the room, once the room is full."""
    files = [(entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in os.scandir(folder)]
    total = sum(size for _, size, _ in files)
    if total > LARGEST:
        for _, size, path in sorted(files):
            if total > LARGEST // 2:
                Path(path).unlink(missing_ok=True)
                total -= size


def _machine() -> str:
    """A name for what a compiled program depends on beside itself: another processor may lack instructions."""
    about = [platform.machine(), platform.processor(), *map(importlib.metadata.version, ("jax", "jaxlib"))]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about += [next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags")]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
