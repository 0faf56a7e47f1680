"""A made-up ImageNet."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def tiny_imagenet(tmp_path_factory):
    """The folder of an ImageNet with 8 training and 4 validation images."""
    root = tmp_path_factory.mktemp("data") / "imagenet"
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        (root / split).mkdir(parents=True)
        lines = []
        for number in range(count):
            pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            lines.append(f"{number}.png {number * 100}\n")
        (root / "meta").mkdir(exist_ok=True)
        (root / "meta" / f"{split}.txt").write_text("".join(lines))
    return root
