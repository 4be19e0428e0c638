"""What a sweep has found: a file a run, and all of them as one table, in Parquet and as CSV."""

import io
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lipzoo.system.errors import UserError
from lipzoo.system.files import read_json, write_bytes, write_text

Row = dict[str, Any]
FINAL = ("done", "diverged")
"""What a run is after which it is not run again; one that `failed` is, when the sweep goes on, and so is one that was
`refused`, if it is no more."""
EVERY = 10.0
"""Seconds between tables, at least."""
TABLES = ("results.parquet", "results.csv")


class Results:
    """The rows of a folder, by the keys of their runs. One process writes to it, or several of other `--jobs`."""

    def __init__(self, folder: Path, *, write: bool = True):
        self.folder = folder
        self.rows: dict[str, Row] = {}
        self._unwritten: dict[str, Row] = {}
        self._written = 0.0
        """When the tables were written."""
        self._warned = False
        try:
            if write:
                (folder / "rows").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): choose another --out") from error
        self.read()

    def read(self) -> None:
        """Reads what is there, also what others have written since. What cannot be read is told, and run again."""
        for path in sorted((self.folder / "rows").glob("*.json")):
            if self.done(path.stem) or path.stem in self._unwritten:
                continue
            try:
                row = read_json(path)
                self.rows[path.stem] = {**row, "key": path.stem, "status": row["status"]}
            except (OSError, ValueError, TypeError, KeyError) as error:
                print(f"warning: {path} cannot be read ({error}): this run is not taken to be done", file=sys.stderr)

    def done(self, key: str) -> bool:
        """Whether a run need not be run again."""
        return key in self.rows and self.rows[key]["status"] in FINAL

    def add(self, row: Row) -> None:
        """Keeps a row, on the disk at once if there is room, else as soon as there is."""
        self.rows[row["key"]] = self._unwritten[row["key"]] = row
        self._write()
        if time.monotonic() - self._written > EVERY:
            self.write_tables()

    def close(self) -> None:
        """Writes what is left. Raises UserError if that cannot be."""
        self._write()
        known = None
        while self.rows and not self._unwritten and known != len(self.rows):  # Others may end at the same time.
            known = len(self.rows)
            self.write_tables()
            self.read()
        if self._unwritten:
            raise UserError(
                f"{len(self._unwritten)} results could not be written to {self.folder}, and are lost: free some space, "
                "and give the same command again"
            )

    def _write(self) -> None:
        try:
            for key, row in list(self._unwritten.items()):
                write_text(self.folder / "rows" / f"{key}.json", json.dumps(row, indent=1) + "\n")
                del self._unwritten[key]
        except OSError as error:
            self._warn(error)

    def write_tables(self) -> None:
        """The table of all rows, twice."""
        self._written = time.monotonic()
        self.read()
        try:
            parquet, csv = tables(self.rows.values())
            for name, content in zip(TABLES, (parquet, csv), strict=True):
                write_bytes(self.folder / name, content)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            print(
                f"warning: cannot write to {self.folder} ({error.strerror}): the sweep goes on, and its results are "
                "written once that is mended",
                file=sys.stderr,
            )
        self._warned = True


def tables(rows: Iterable[Row]) -> tuple[bytes, bytes]:
    """Rows as Parquet and as CSV. A column is there if any row has it."""
    import pyarrow
    from pyarrow import csv, parquet

    listed = sorted(rows, key=lambda row: row["key"])
    names = list(dict.fromkeys(name for row in listed for name in row))
    table = pyarrow.table({name: _column([row.get(name) for row in listed]) for name in names})
    targets = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, targets[0])
    csv.write_csv(table, targets[1])
    return targets[0].getvalue(), targets[1].getvalue()


def _column(values: Sequence[Any]) -> list[Any]:
    """Values of one type: numbers as floats where some are, and all else, where types differ, as text."""
    known = [value for value in values if value is not None]
    if any(isinstance(value, (list, tuple)) for value in known):
        return [None if value is None else " ".join(map(str, value)) for value in values]
    if {type(value) for value in known} <= {int, float} and any(isinstance(value, float) for value in known):
        return [None if value is None else float(value) for value in values]
    if len({type(value) for value in known}) > 1:
        return [None if value is None else str(value) for value in values]
    return list(values)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table that a sweep has written, or of its folder. Raises UserError if it is none."""
    from pyarrow import ArrowException, csv, parquet

    file = path / TABLES[0] if path.is_dir() else path
    try:
        table = csv.read_csv(file) if file.suffix == ".csv" else parquet.read_table(file)
    except (OSError, ArrowException) as error:
        raise UserError(f"{path} is no results.parquet of a sweep ({str(error).splitlines()[0]})") from error
    if missing := {"key", "status", "command"} - set(table.column_names):
        raise UserError(f"{path} is no table of a sweep: it has no column {sorted(missing)[0]!r}")
    return table.to_pylist()
