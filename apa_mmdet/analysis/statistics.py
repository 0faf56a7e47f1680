"""Statistics of any number of values in bounded memory, over many processes.

Both kinds are exact functions of the values that were added: their order, and which
process added them, make no difference to the last bit.
"""

from __future__ import annotations

import numpy as np

# Bins start this fine, as an exponent of 2: finer than float32 in any bin.
_FINEST = -40


class Histogram:
    """Counts of values in bins that adapt to their range, with bootstrap replicates.

    The bins have equal width ``2**exponent`` on the axis ``t = asinh(z)``: they are
    narrow near 0 and grow in proportion to ``|z|`` far out, so a few outliers do not
    cost the resolution of the rest. The exponent is the smallest with which all values
    fit in ``max_bins`` bins.

    Of a replicate, each block of values (an image's) counts a random number of times:
    a bootstrap over blocks that needs no block to be kept.

    Args:
        num_replicates: Number of replicates R.
        max_bins: Limit of the number of bins.

    Attributes:
        counts: int64 (1 + R, bins) of the occupied range, the data's own first.
        num_not_finite: Number of infinities and NaNs, which are not counted.
    """

    def __init__(self, num_replicates: int = 0, max_bins: int = 2048) -> None:
        self.max_bins = max_bins
        self.num_not_finite = 0
        self.counts = np.zeros((1 + num_replicates, 0), np.int64)
        self._exponent = _FINEST
        self._first = 0  # index of the first bin, which begins at _first * width

    def add(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Add a block's values.

        Args:
            values: Floats of any shape.
            weights: int64 (1 + R,): how often each value counts, in the data and in
                each replicate.
        """
        t = np.arcsinh(np.asarray(values, np.float64).ravel())
        is_finite = np.isfinite(t)
        if not is_finite.all():
            self.num_not_finite += int((~is_finite).sum())
            t = t[is_finite]
        if len(t):
            index = np.floor(np.ldexp(t, -self._exponent)).astype(np.int64)
            shift = self._cover(int(index.min()), int(index.max()), self._exponent)
            index = (index >> shift) - self._first
            counts = np.bincount(index, minlength=self.counts.shape[1])
            self.counts += weights[:, None] * counts

    def merge(self, other: Histogram) -> None:
        """Add the values of another histogram, which may change in doing so."""
        self.num_not_finite += other.num_not_finite
        num_bins = other.counts.shape[1]
        if num_bins:
            last = other._first + num_bins - 1
            shift = self._cover(other._first, last, other._exponent)
            other._coarsen(shift)
            start = other._first - self._first
            self.counts[:, start : start + other.counts.shape[1]] += other.counts

    def _cover(self, low: int, high: int, exponent: int) -> int:
        """Make room for bins ``low`` to ``high`` of an exponent.

        Returns:
            By how many bits the index of such a bin is shifted.
        """
        num_bins = self.counts.shape[1]
        target = max(exponent, self._exponent)
        low, high = low >> target - exponent, high >> target - exponent
        if num_bins:
            own_shift = target - self._exponent
            low = min(low, self._first >> own_shift)
            high = max(high, self._first + num_bins - 1 >> own_shift)
        while high - low >= self.max_bins:
            low, high, target = low >> 1, high >> 1, target + 1
        self._coarsen(target - self._exponent)
        before = self._first - low if num_bins else 0
        after = high - low + 1 - before - self.counts.shape[1]
        self.counts = np.pad(self.counts, ((0, 0), (before, after)))
        self._first = low
        return target - exponent

    def _coarsen(self, shift: int) -> None:
        """Merge runs of ``2**shift`` bins."""
        self._exponent += shift
        if shift and self.counts.shape[1]:
            index = self._first + np.arange(self.counts.shape[1]) >> shift
            starts = np.flatnonzero(np.diff(index, prepend=index[0] - 1))
            self.counts = np.add.reduceat(self.counts, starts, axis=1)
            self._first = int(index[0])

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts[0].sum())

    @property
    def edges(self) -> np.ndarray:
        """(bins + 1,) edges of the bins."""
        index = self._first + np.arange(self.counts.shape[1] + 1)
        return np.sinh(np.ldexp(index.astype(np.float64), self._exponent))

    @property
    def centers(self) -> np.ndarray:
        """(bins,) values that stand for those of a bin."""
        index = self._first + np.arange(self.counts.shape[1]) + 0.5
        return np.sinh(np.ldexp(index, self._exponent))

    def quantiles(self, shares: np.ndarray) -> np.ndarray:
        """Return the quantiles, exact to a bin, for shares in [0, 1]."""
        cumulative = np.concatenate([[0], self.counts[0].cumsum()]) / self.total
        t = np.interp(shares, cumulative, np.arcsinh(self.edges))
        return np.sinh(t)

    def shares(self, values: np.ndarray) -> np.ndarray:
        """Return the share of the data up to each value, exact to a bin."""
        cumulative = np.concatenate([[0], self.counts[0].cumsum()]) / self.total
        return np.interp(np.arcsinh(values), np.arcsinh(self.edges), cumulative)


class Reservoir:
    """A uniform sample of the values of each of many series.

    Each value comes with a random priority, and the smallest ones of a series are kept:
    all its values up to ``size`` of them.

    Args:
        num_series: Number of series.
        size: Limit of values kept of each.

    Attributes:
        seen: int64 (num_series,): number of values added.
    """

    def __init__(self, num_series: int, size: int) -> None:
        self.size = size
        self.seen = np.zeros(num_series, np.int64)
        self._threshold = np.full(num_series, np.inf)
        self._kept = np.zeros(0, np.int32), np.zeros(0), np.zeros(0, np.float32)
        self._pending: list[tuple[np.ndarray, ...]] = []
        self._num_pending = 0

    def add(
        self, series: np.ndarray, priorities: np.ndarray, values: np.ndarray
    ) -> None:
        """Add values.

        Args:
            series: (n,) indices of their series.
            priorities: (n,) uniform random numbers.
            values: (n,) floats, kept as float32.
        """
        self.seen += np.bincount(series, minlength=len(self.seen))
        self._append(series, priorities, values)

    def merge(self, other: Reservoir) -> None:
        """Add the values of another reservoir."""
        self.seen += other.seen
        self._append(*other._compact())

    def values_of(self, series: int) -> np.ndarray:
        """Return the sample of a series, float32, in an order that is random."""
        kept = self._compact()
        start, end = np.searchsorted(kept[0], [series, series + 1])
        return kept[2][start:end]

    def _append(self, *columns: np.ndarray) -> None:
        chosen = columns[1] < self._threshold[columns[0]]
        added = tuple(
            column[chosen].astype(kept.dtype)
            for column, kept in zip(columns, self._kept)
        )
        self._pending.append(added)
        self._num_pending += len(added[0])
        if self._num_pending > len(self.seen) * self.size:
            self._compact()

    def _compact(self) -> tuple[np.ndarray, ...]:
        """Drop what cannot belong to the sample; return the rest, sorted."""
        if self._pending:
            columns = [np.concatenate(c) for c in zip(self._kept, *self._pending)]
            order = np.lexsort((columns[1], columns[0]))
            series, priorities, values = (column[order] for column in columns)
            rank = np.arange(len(series)) - np.searchsorted(series, series)
            is_last = rank == self.size - 1
            self._threshold[series[is_last]] = priorities[is_last]
            kept = rank < self.size
            self._kept = series[kept], priorities[kept], values[kept]
            self._pending, self._num_pending = [], 0
        return self._kept
