"""Text in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["lines"]


def lines(rows: Sequence[Sequence[str]], indent: str = "") -> Iterator[str]:
    """A line a row; columns as wide as they need to be, the last as wide as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
