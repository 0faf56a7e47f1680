"""Handwritten digits from a diffusion model: SiLU and GELU against AGLU.

    python examples/image_generation.py

A diffusion transformer (DiT) of diffusers learns to denoise four fifths of
the 1,797 digits of 8 x 8 pixels that scikit-learn ships. "loss" is the mean squared
error of the predicted noise on the others. "recognised" is the share of 200 generated
digits whose nearest neighbour among the training images is the digit asked for.

It needs diffusers, scikit-learn and matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from comparison import Run, compare, make_parser
from diffusers import DDIMScheduler, DiTTransformer2DModel
from digits import digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from apa_mmdet.conversion import convert_activations
from apa_mmdet.optim import param_groups
from apa_mmdet.testing.benchmark import positive

BATCH = 64
SAMPLING_STEPS = 50
GUIDANCE = 2.0
NO_DIGIT = 10  # the label that DiT puts in place of every tenth while it trains


DATA = digits(train_share=0.8)


def build() -> nn.Module:
    """Return a DiT of 0.4 million parameters."""
    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=1,
        num_layers=4,
        sample_size=8,
        patch_size=2,
        norm_num_groups=8,
        num_embeds_ada_norm=NO_DIGIT,
    )


def predict(
    model: nn.Module, noisy: Tensor, timesteps: Tensor, labels: Tensor
) -> Tensor:
    """Return the noise that a model sees in images."""
    return model(noisy, timesteps, class_labels=labels).sample


def noise_schedule() -> DDIMScheduler:
    """Return the schedule of noise in training and generation."""
    return DDIMScheduler(beta_schedule="squaredcos_cap_v2")


def train(model: nn.Module, steps: int, samples: int) -> dict[str, float]:
    """Train a model, and return its figures."""
    images, _, labels, _ = DATA
    scheduler = noise_schedule()
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.01), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH,))
        noise = torch.randn(BATCH, *images.shape[1:])
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (BATCH,))
        noisy = scheduler.add_noise(images[batch], noise, timesteps)
        loss = F.mse_loss(predict(model, noisy, timesteps, labels[batch]), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return {
        "loss": held_out_loss(model, scheduler),
        "recognised": recognised(model, samples),
    }


@torch.no_grad()
def held_out_loss(model: nn.Module, scheduler: DDIMScheduler, draws: int = 8) -> float:
    """Return the loss on the held-out images, each with several draws of noise."""
    _, images, _, labels = DATA
    generator = torch.Generator().manual_seed(0)  # the same noise for every model
    losses = []
    for _ in range(draws):
        noise = torch.randn(images.shape, generator=generator)
        order = torch.randperm(len(images), generator=generator)
        timesteps = order * scheduler.config.num_train_timesteps // len(images)
        noisy = scheduler.add_noise(images, noise, timesteps)
        losses.append(F.mse_loss(predict(model, noisy, timesteps, labels), noise))
    return torch.stack(losses).mean().item()


@torch.no_grad()
def generate(model: nn.Module, labels: Tensor) -> Tensor:
    """Return an image of each of these digits, always from the same noise.

    The noise is predicted with classifier-free guidance.
    """
    scheduler = noise_schedule()
    scheduler.set_timesteps(SAMPLING_STEPS)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(labels), 1, 8, 8, generator=generator)
    for timestep in scheduler.timesteps:
        timesteps = timestep.expand(len(labels))
        noise = predict(model, images, timesteps, labels)
        aimless = predict(model, images, timesteps, torch.full_like(labels, NO_DIGIT))
        noise = aimless + GUIDANCE * (noise - aimless)
        images = scheduler.step(noise, timestep, images).prev_sample
    return images


def recognised(model: nn.Module, samples: int) -> float:
    """Return the share of generated digits that a classifier recognises."""
    images, _, labels, _ = DATA
    classifier = KNeighborsClassifier(1).fit(images.flatten(1), labels)
    wanted = torch.arange(samples) % 10
    found = classifier.predict(generate(model, wanted).flatten(1))
    return float(np.mean(found == wanted.numpy()))


def draw(runs: Mapping[str, Sequence[Run]], path: Path, rows: int = 4) -> None:
    """Draw held-out digits and what the first seed's models generate, side by side."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = torch.arange(10).repeat(rows)
    _, images, _, labels = DATA
    real = [images[(labels == digit).nonzero()[:rows, 0]] for digit in range(10)]
    panels = {"held-out digits": torch.stack(real, 1).flatten(0, 1)}
    panels.update(
        (name, generate(each[0].model, wanted)) for name, each in runs.items()
    )
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4 * len(panels), 0.45 * rows), layout="constrained"
    )
    for axis, (title, pictures) in zip(axes, panels.items()):
        framed = F.pad(pictures[:, 0], (1, 1, 1, 1), value=-1).view(rows, 10, 10, 10)
        grid = framed.transpose(1, 2).reshape(rows * 10, 100).numpy()
        axis.imshow(-grid, "gray", vmin=-1, vmax=1)
        axis.set_title(title)
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> dict[str, list[Run]]:
    """Train with every seed, print the table, draw the pictures; return the runs."""
    parser = make_parser(__doc__, steps=700)
    add, out = parser.add_argument, Path("work_dirs/image_generation.png")
    samples_help = "digits to generate and recognise (%(default)s)"
    add("--samples", type=positive, default=200, help=samples_help)
    add("--out", type=Path, default=out, help="pictures to draw (%(default)s)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    _, images, _, labels = DATA
    timesteps = torch.arange(8) * 100
    runs = compare(
        build,
        partial(train, steps=args.steps, samples=args.samples),
        {"SiLU, GELU": None, "AGLU": convert_activations},
        lambda model: predict(model, images[:8], timesteps, labels[:8]),
        args.seeds,
    )
    draw(runs, args.out)
    print(f"\nPictures: {args.out}")
    return runs


if __name__ == "__main__":
    main()
