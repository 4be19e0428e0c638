"""Tables on a terminal, from columns of text: what stands above each, and its cells from the top."""

from collections.abc import Mapping, Sequence

from rich.table import Column, Table


def terminal_table(columns: Mapping[str, Sequence[str]], title: str) -> Table:
    """The first column, what rows are called, is on the left; numbers are on the right."""
    first, *rest = columns
    table = Table(first, *(Column(name, justify="right") for name in rest), title=title)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table
