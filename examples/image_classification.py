"""Handwritten digits, classified: GELU and ReLU against AGLU.

    python examples/image_classification.py
    python examples/image_classification.py --models vit

A vision transformer (ViT) and a CNN (ResNet) of transformers, from their
configurations, on the 1,797 digits of 8 x 8 pixels that scikit-learn ships. A quarter
of the images is for training, so that something is left to win. The figures are those
on the others: "loss" is the cross-entropy, "accuracy" the share of digits recognised.

It needs transformers and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from comparison import Run, compare, make_parser
from digits import digits
from torch import nn
from torch.nn import functional as F
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from apa_mmdet.conversion import convert_activations
from apa_mmdet.optim import param_groups

BATCH = 64
MODELS = {"vit": "GELU", "resnet": "ReLU"}  # and what is in them


DATA = digits(train_share=0.25)


def build(kind: str) -> nn.Module:
    """Return a ViT or a ResNet of 0.2 million parameters."""
    if kind == "vit":
        return ViTForImageClassification(
            ViTConfig(
                image_size=8,
                patch_size=2,
                num_channels=1,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=6,
                num_attention_heads=4,
                num_labels=10,
            )
        )
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1,
            embedding_size=32,
            hidden_sizes=[32, 64],
            depths=[2, 2],
            layer_type="basic",
            num_labels=10,
        )
    )


def train(model: nn.Module, steps: int) -> dict[str, float]:
    """Train a model, and return its figures on the held-out images."""
    images, held_out, labels, held_out_labels = DATA
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.05), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(model(images[batch]).logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        logits = model(held_out).logits
    right = (logits.argmax(1) == held_out_labels).float()
    loss = F.cross_entropy(logits, held_out_labels)
    return {"loss": loss.item(), "accuracy": right.mean().item()}


def main(argv: Sequence[str] | None = None) -> dict[str, list[Run]]:
    """Train with every seed and print the tables; return the last model's runs."""
    parser = make_parser(__doc__, steps=400)
    models_help = "architectures (default: %(default)s)"
    options = dict(nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--models", help=models_help, **options)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    images = DATA[0][:8]
    for kind in args.models:
        print(f"\n{kind}:\n")
        runs = compare(
            partial(build, kind),
            partial(train, steps=args.steps),
            {MODELS[kind]: None, "AGLU": convert_activations},
            lambda model: model(images).logits,
            args.seeds,
        )
    return runs


if __name__ == "__main__":
    main()
