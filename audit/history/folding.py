"""How much work the next fold of the counts may do."""

from __future__ import annotations

import time
from typing import Final

#: A fold that has split buckets for this long leaves the others to later folds.
_SPLIT_SECONDS: Final = 2.0
#: After a fold that ran out of time, the next ones split nothing for this long.
_SPLIT_PAUSE_SECONDS: Final = 600


class FoldPace:
    """The limits of the next fold: halved when one runs out of time, raised by each that ends."""

    def __init__(self, most_cells: int) -> None:
        self._most = most_cells
        self.cells = most_cells
        self._splits_from = 0.0

    @property
    def split_seconds(self) -> float:
        """How long the next fold may start to split buckets."""
        return _SPLIT_SECONDS if time.monotonic() >= self._splits_from else 0

    def timed_out(self) -> None:
        """Halve the next fold, and split no buckets for a while: splits may have taken the time."""
        self.cells = max(1, self.cells // 2)
        self._splits_from = time.monotonic() + _SPLIT_PAUSE_SECONDS

    def succeeded(self) -> None:
        """Let the next fold do a quarter more, up to the setting."""
        self.cells = min(self._most, self.cells + self.cells // 4 + 1)
