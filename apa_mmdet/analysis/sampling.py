"""Which values of an image are used: at random, but the same in every process."""

from __future__ import annotations

import zlib

import numpy as np

from .statistics import Histogram


class ImageSampler:
    """The random choices for one image after the other.

    They depend on the image's number and on what they are for, not on which images
    came before or which process sees the image.

    Args:
        values_per_call: Limit of values used of one tensor.
        values_per_class: Limit of values kept of one class.
        num_replicates: Bootstrap replicates over images.
        seed: Of everything random.
    """

    def __init__(
        self,
        values_per_call: int = 16384,
        values_per_class: int = 512,
        num_replicates: int = 100,
        seed: int = 0,
    ) -> None:
        self.values_per_call = values_per_call
        self.values_per_class = values_per_class
        self.num_replicates = num_replicates
        self.seed = seed
        self.start_image(0, 0)

    def start_image(self, number: int, block: int) -> None:
        """Draw how often an image counts in each replicate, ``weights``: Poisson(1).

        Such weights are a bootstrap over images whose number need not be known.

        Args:
            number: Of the image, different for each.
            block: The same for images that the bootstrap draws together.
        """
        self._image = number
        self._calls: dict[str, int] = {}
        rng = np.random.default_rng([self.seed, block])
        weights = rng.poisson(1, 1 + self.num_replicates)
        weights[0] = 1
        self.weights = weights.astype(np.int64)

    def random(self, purpose: str) -> np.random.Generator:
        """Return a generator for this image, this purpose and this call."""
        call = self._calls[purpose] = self._calls.get(purpose, -1) + 1
        return np.random.default_rng(
            [self.seed, self._image, zlib.crc32(purpose.encode()), call]
        )

    def choose(
        self, n: int, purpose: str, limit: int | None = None
    ) -> tuple[np.ndarray, int]:
        """Choose evenly spread ones of n values, one from each run of ``step``.

        Args:
            n: Number of values.
            purpose: What they are chosen for; see :meth:`random`.
            limit: How many to choose at most, by default ``values_per_call``.

        Returns:
            Their indices, and ``step``, for how many values each one stands.
        """
        step = max(-(-int(n) // (limit or self.values_per_call)), 1)
        runs = np.arange(int(n) // step) * step
        if step > 1:
            runs += self.random(purpose).integers(0, step, len(runs))
        return runs, step

    def histogram(self) -> Histogram:
        """Return an empty histogram with as many replicates."""
        return Histogram(self.num_replicates)

    def add_to(
        self, histogram: Histogram, values: np.ndarray, purpose: str, factor: int = 1
    ) -> None:
        """Add values to a histogram, each standing for ``factor``, or some of them."""
        chosen, step = self.choose(len(values), purpose)
        histogram.add(values[chosen], self.weights * step * factor)
