"""Addresses of a table that is sorted, searched and paged on the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlencode

MAX_PAGE = 10**6


@dataclass(frozen=True)
class TableLinks:
    """Queries that lead from a table to another order or page.

    Attributes:
        fields: of the search, which stay.
        sort: the column that the table is sorted by.
        is_descending: the largest first.
        page: from 1.
        count: rows in all.
        page_size: rows of a page.
        ascending_first: columns whose first click sorts from the smallest; the others begin with the largest.
    """

    fields: dict[str, str]
    sort: str
    is_descending: bool
    page: int
    count: int
    page_size: int
    ascending_first: frozenset[str] = field(default_factory=frozenset)

    @property
    def page_count(self) -> int:
        """Number of pages, at least one."""
        return max(1, -(-self.count // self.page_size))

    @property
    def first(self) -> int:
        """Number of the page's first row."""
        return (self.page - 1) * self.page_size + 1

    def sort_by(self, column: str) -> str:
        """The first page in the order of a column; of the current one, turned around."""
        descends = not self.is_descending if column == self.sort else column not in self.ascending_first
        return self._make_query(column, descends, 1)

    def open_page(self, page: int) -> str:
        """Another page in the same order."""
        return self._make_query(self.sort, self.is_descending, page)

    def _make_query(self, sort: str, descends: bool, page: int) -> str:
        return urlencode({**self.fields, "sort": sort, "order": "down" if descends else "up", "page": page})
