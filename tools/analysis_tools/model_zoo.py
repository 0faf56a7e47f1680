"""Print docs/model_zoo.md, made from the metafiles and the benchmark results.

    python tools/analysis_tools/model_zoo.py > docs/model_zoo.md

Reads model-index.yml, the metafiles it imports, and mini_lvis_heads.json and zoo.json
of docs/benchmarks/. Needs only PyYAML.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

import yaml

ROOT = Path(__file__).parents[2]
HEADS = {
    "softmax": "softmax",
    "sigmoid": "sigmoid (λ = 1)",
    "seesaw": "Seesaw",
    "eqlv2": "EQLv2",
    "gumbel": "Gumbel (λ = 0)",
    "apa": "APA, shared λ and κ",
    "apa_per_class": "APA, λ and κ per class",
}
PAGE = """\
# Model zoo

<!-- Generated: python tools/analysis_tools/model_zoo.py > docs/model_zoo.md -->

No config of this repository has been trained on LVIS, COCO, V3Det or ImageNet yet. The
figures below are of two kinds: the authors' own, and those measured here on mini-LVIS,
a small synthetic data set. [Results](results.md) says what they mean.

## Published figures

Measured by the authors with their own code,
[kostas1515/AGLU](https://github.com/kostas1515/AGLU), and not reproduced here.
[Checkpoints](checkpoints.md) tells how to use their files with these configs.

{published}

## Configs without a published figure

{unpublished}

## Classification heads on mini-LVIS

`{heads[config]}` trained for {heads[epochs]} epochs with each head,
everything else unchanged; mean and standard deviation over {seeds} seeds
(`python tools/analysis_tools/ablate.py @docs/benchmarks/mini_lvis_heads.txt`,
[every run](benchmarks/mini_lvis_heads.json), [plot](benchmarks/mini_lvis_heads.png)):

{heads_table}

## Cost of a training step

Bytes that autograd saves for backward and time of a step, relative to the same config
with fixed activations (ReLU, GELU or SiLU) and plain SE; {batch} images of {height} ×
{width}, {zoo[machine][threads]} CPU threads, medians of {zoo[rounds]} rounds
([figures](benchmarks/zoo.json)). The times were taken with the CPU kernels called from
Python instead of C++. CARAFE has no CPU kernel, so both models of a pair used a
deconvolution instead.
[Performance](performance.md) explains where the bytes go.

```bash
python tools/analysis_tools/benchmark_train_step.py --relu-twin --name zoo CONFIG ...
```

{costs}
"""


def read_models() -> list[dict]:
    """Return the entries of every metafile that model-index.yml imports."""
    paths = yaml.safe_load((ROOT / "model-index.yml").read_text("utf-8"))["Import"]
    metafiles = (yaml.safe_load((ROOT / path).read_text("utf-8")) for path in paths)
    return [model for metafile in metafiles for model in metafile["Models"]]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def link(model: dict) -> str:
    """Return a link to the model's config."""
    return f"[`{model['Name']}`](../{model['Config']})"


def published_tables(models: list[dict]) -> str:
    """Return one table for each data set that figures are published for."""
    datasets: dict[str, list[tuple[dict, dict]]] = {}
    for model in models:
        figures: dict[str, dict] = {}
        for result in model.get("Results", ()):
            figures.setdefault(result["Dataset"], {}).update(result["Metrics"])
        for dataset, metrics in figures.items():
            datasets.setdefault(dataset, []).append((model, metrics))
    blocks = []
    for dataset, rows in datasets.items():
        names = list(dict.fromkeys(name for _, metrics in rows for name in metrics))
        cells = (
            [link(model), model["Metadata"]["Epochs"]]
            + [metrics.get(name, "–") for name in names]
            for model, metrics in rows
        )
        blocks.append(f"**{dataset}**\n\n{table(['config', 'epochs', *names], cells)}")
    return "\n\n".join(blocks)


def unpublished_table(models: list[dict]) -> str:
    """Return the configs that nobody has published figures for."""
    keys = ("Summary", "Epochs", "Initial Weights")
    rows = (
        [link(model), *(model["Metadata"][key] for key in keys)]
        for model in models
        if not model.get("Results")
    )
    return table(["config", "what it is", "epochs", "initial weights"], rows)


def heads_table(runs: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return mean and standard deviation over the seeds, for each head."""
    keys = ("segm AP", "segm APr", "segm APc", "segm APf", "bbox AP")
    rows = []
    for head, seeds in runs.items():
        columns = ([figures[key] for figures in seeds.values()] for key in keys)
        cells = [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in columns]
        rows.append([HEADS[head], *cells])
    return table(["head", "mask AP", "APr", "APc", "APf", "box AP"], rows)


def costs_table(models: list[dict], rows: list[dict]) -> str:
    """Return each config's cost relative to its twin with fixed activations."""
    measured = {row["config"]: row for row in rows if "twin" in row}
    cells = (
        [f"`{row['config']}`", f"{row['saved_ratio']:.2f}", f"{row['time_ratio']:.2f}"]
        for row in (measured.get(model["Name"]) for model in models)
        if row is not None
    )
    return table(["config", "bytes saved for backward", "time"], cells)


def make_page() -> str:
    """Return the page's text."""
    models = read_models()
    heads, zoo = (
        json.loads((ROOT / f"docs/benchmarks/{name}.json").read_text("utf-8"))
        for name in ("mini_lvis_heads", "zoo")
    )
    return PAGE.format(
        published=published_tables(models),
        unpublished=unpublished_table(models),
        heads=heads,
        heads_table=heads_table(heads["runs"]),
        seeds=len(next(iter(heads["runs"].values()))),
        zoo=zoo,
        batch=zoo["batch"],
        height=zoo["size"][0],
        width=zoo["size"][1],
        costs=costs_table(models, zoo["rows"]),
    )


if __name__ == "__main__":
    print(make_page(), end="")
