r"""Questions about pictures, answered by a small LLaVA with learnable activations.

    python examples/vision_language.py --out answers.png

A CLIP vision tower, a projector and a Llama are built from the configuration classes of
transformers, joined in LlavaForConditionalGeneration, and trained from scratch, as they
are and with every activation converted to an AGLU: quick GELU in the vision tower, GELU
in the projector, SiLU in the Llama. At the end the last AGLU model answers questions
about held-out pictures, which --out writes to a file.

The script draws its pictures: two shapes in two corners, of varying size and place, on
noise. Which shapes, in which colors, in which corners makes a scene; there are 1080,
and every tenth is held out, so that no picture of it is seen in training. There are
three kinds of questions, and a caption. "exact" is the share of answers without a wrong
word.

It needs ``pip install '.[examples]'`` and takes about 6 minutes on one core.
"""

from __future__ import annotations

import random
import textwrap
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import torch
from comparison import compare, make_parser, positive
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from apa_mmdet.conversion import convert_activations
from apa_mmdet.optim import param_groups

SHAPES = ["circle", "square", "triangle"]
COLORS = ["red", "green", "blue", "yellow", "purple", "white"]
CENTERS = {
    "top left": (8, 8),
    "top right": (24, 8),
    "bottom left": (8, 24),
    "bottom right": (24, 24),
}
WORDS = "<pad> <image> <end> what where color is the at a and shape describe".split()
WORDS += ["top", "bottom", "left", "right", *SHAPES, *COLORS]
PAD, IMAGE, END = range(3)
SIZE, PATCH, BATCH = 32, 8, 32
NUM_PATCHES = (SIZE // PATCH) ** 2
LENGTH = NUM_PATCHES + 17  # a caption is the longest text
Data = tuple[Tensor, Tensor, Tensor]


def all_scenes() -> list[list[tuple[str, str, str]]]:
    """Return all scenes in random order: shape, color and corner of two shapes."""
    choices = permutations(SHAPES, 2), permutations(COLORS, 2), combinations(CENTERS, 2)
    scenes = [list(zip(*choice)) for choice in product(*choices)]
    random.Random(0).shuffle(scenes)
    return scenes


def draw(scene: list, rng: np.random.Generator) -> np.ndarray:
    """Return a picture (SIZE, SIZE, 3) of a scene."""
    image = Image.fromarray(rng.integers(60, 120, (SIZE, SIZE, 3), dtype=np.uint8))
    canvas = ImageDraw.Draw(image)
    for shape, color, corner in scene:
        x, y = CENTERS[corner] + rng.integers(-1, 2, 2)
        r = rng.integers(5, 8)
        if shape == "circle":
            canvas.ellipse((x - r, y - r, x + r, y + r), color)
        elif shape == "square":
            canvas.rectangle((x - r, y - r, x + r, y + r), color)
        else:
            canvas.polygon((x, y - r, x - r, y + r, x + r, y + r), color)
    return np.array(image)


def ask(scene: list, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Return a question of each kind about one of the shapes, with its answer."""
    shape, color, corner = scene[rng.integers(2)]
    return [
        (
            "describe",
            " and ".join(f"a {c} {s} at the {where}" for s, c, where in scene),
        ),
        (f"what color is the {shape}", color),
        (f"where is the {color} shape", corner),
        (f"what is at the {corner}", f"a {color} {shape}"),
    ]


def make_data(scenes: list, copies: int, seed: int) -> Data:
    """Draw scenes and ask about them.

    Returns:
        Pictures (N, 3, SIZE, SIZE) from -1 to 1; of their four questions with answers,
        the tokens (N, 4, LENGTH), and the same with -100 for all but the answers.
    """
    rng = np.random.default_rng(seed)
    pictures, ids, labels = [], [], []
    for scene in scenes * copies:
        pictures.append(draw(scene, rng))
        for question, answer in ask(scene, rng):
            start = [IMAGE] * NUM_PATCHES + [WORDS.index(w) for w in question.split()]
            end = [*(WORDS.index(w) for w in answer.split()), END]
            rest = LENGTH - len(start) - len(end)
            ids.append([*start, *end, *[PAD] * rest])
            labels.append([*[-100] * len(start), *end, *[-100] * rest])
    scaled = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    return scaled, *(torch.tensor(x).view(-1, 4, LENGTH) for x in (ids, labels))


def build() -> nn.Module:
    """Return a LLaVA of 0.3 M parameters."""
    depth = dict(num_hidden_layers=2, num_attention_heads=4)
    vision = CLIPVisionConfig(
        **depth,
        hidden_size=64,
        intermediate_size=128,
        image_size=SIZE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        **depth, hidden_size=96, intermediate_size=192, vocab_size=len(WORDS)
    )
    text.update(dict(initializer_range=0.08, bos_token_id=None))
    text.update(dict(pad_token_id=PAD, eos_token_id=END))
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,  # by default the last layer is not used
    )
    return LlavaForConditionalGeneration(config)


def predict(model: nn.Module, pictures: Tensor, ids: Tensor) -> Tensor:
    """Return the logits of each token but the first."""
    return model(input_ids=ids, pixel_values=pictures, use_cache=False).logits[:, :-1]


def train(model: nn.Module, data: Data, steps: int) -> None:
    """Train a model on the answers to random questions."""
    pictures, ids, labels = data
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.05), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    for _ in range(steps):
        i, k = torch.randint(len(pictures), (BATCH,)), torch.randint(4, (BATCH,))
        logits = predict(model, pictures[i], ids[i, k])
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), labels[i, k, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def test(model: nn.Module, data: Data) -> dict[str, float]:
    """Return the loss per token of the answers, and the share of exact answers.

    An answer is exact if each of its tokens is the likeliest after the correct ones
    before it: greedy decoding then gives this answer.
    """
    model.eval()
    pictures, ids, labels = data
    logits = torch.cat([predict(model, pictures, ids[:, k]) for k in range(4)])
    targets = torch.cat([labels[:, k, 1:] for k in range(4)])
    exact = ((logits.argmax(-1) == targets) | (targets == -100)).all(1)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return {"loss per token": loss.item(), "exact": exact.float().mean().item()}


@torch.no_grad()
def show_answers(model: nn.Module, data: Data, path: Path | None) -> None:
    """Print questions and a model's answers, and write them with the pictures."""
    page = Image.new("RGB", (560, 140 * len(data[0])), "white")
    for i, (picture, ids, labels) in enumerate(zip(*data)):
        lines = []
        for text, label in zip(ids, labels):
            prompt = text[: (label != -100).nonzero()[0]][None]
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                pixel_values=picture[None],
                max_new_tokens=16,
                do_sample=False,
                eos_token_id=END,
            )[0, prompt.shape[1] :]
            question, answer, expected = (
                " ".join(WORDS[token] for token in tokens if token > END)
                for tokens in (prompt[0], output, label)
            )
            wrong = "" if answer == expected else f" (wrong: {expected})"
            lines.append(f"{question}: {answer}{wrong}")
        print(f"\nPicture {i + 1}", *lines, sep="\n")
        drawn = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        page.paste(Image.fromarray(drawn).resize((128, 128)), (6, 140 * i + 6))
        text = "\n".join(textwrap.fill(line, 70) for line in lines)
        ImageDraw.Draw(page).multiline_text((146, 140 * i + 12), text, "black")
    if path is not None:
        page.save(path)


def main(argv: list[str] | None = None) -> dict:
    """Run the comparison, show answers, and return the runs."""
    parser = make_parser(__doc__, steps=900)
    parser.add_argument("--scenes", type=positive, help="to draw (default: all 1080)")
    parser.add_argument("--out", type=Path, help="picture of the answers to write")
    args = parser.parse_args(argv)
    if args.scenes == 1:
        parser.error("--scenes 1: expected at least 2, of which one is held out")
    if args.out and not (args.out.suffix == ".png" and args.out.parent.is_dir()):
        parser.error(f"--out {args.out}: expected a .png in a folder that exists")
    if args.threads:
        torch.set_num_threads(args.threads)
    scenes = all_scenes()[: args.scenes]
    held_out = make_data(scenes[::10], copies=1, seed=1)
    del scenes[::10]
    data = make_data(scenes, copies=4, seed=0)

    def measure(model: nn.Module) -> dict[str, float]:
        train(model, data, args.steps)
        return test(model, held_out)

    runs = compare(
        build=build,
        train=measure,
        variants={"SiLU and GELU": None, "AGLU": convert_activations},
        output=lambda model: predict(model, held_out[0], held_out[1][:, 0]),
        seeds=args.seeds,
    )
    some = tuple(part[:4] for part in held_out)
    show_answers(runs["AGLU"][-1].model, some, args.out)
    return runs


if __name__ == "__main__":
    main()
