"""Tables of results, as they are read and written."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, str]


def shown(value: Any) -> str:
    """A number with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_table(path: Path) -> list[Row]:
    """The rows that are there already."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def to_csv(rows: Sequence[Row]) -> str:
    """A table with all columns that any row has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A table of these columns."""
    cells = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in cells)
