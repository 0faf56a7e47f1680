"""From variations of a config to runs: settings merged and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from ...datasets import set_data_root
from ..configs import read_config, set_classifier, set_epochs
from .run import Run, find_evaluator, first_difference


class Variation(NamedTuple):
    """What is compared with others.

    Attributes:
        name: Also of its folders.
        source: The config; for a test of another variation's weights, its name.
        settings: Settings to override, as in ``--cfg-options``. Two are special:
            ``data_root`` moves the whole data set, and ``head`` is a config whose
            classifier to take.
    """

    name: str
    source: str
    settings: Mapping[str, object]


def make_runs(
    variations: Sequence[Variation],
    tests: Sequence[Variation],
    seeds: Sequence[int],
    work_dir: Path,
    epochs: int | None = None,
) -> list[Run]:
    """Return the runs, seed by seed, after checking all settings.

    Args:
        variations: What to train.
        tests: What to test on the weights of those.
        seeds: Of the trainings.
        work_dir: Where the runs are kept.
        epochs: Of each training; None for the config's own.

    Raises:
        ValueError: In one line, if a name, seed or setting is unusable, if two
            variations are not evaluated alike, or if ``work_dir`` has runs of other
            settings.
    """
    if len(set(seeds)) < len(seeds):
        text = " ".join(map(str, seeds))
        raise ValueError(f"--seeds {text}: expected each seed once")
    configs: dict[str, Config] = {}
    tested: dict[str, dict[str, Config]] = {}
    for variation in variations:
        option = _check_name("--variation", variation.name, configs)
        cfg = configs[variation.name] = _make_config(option, variation, epochs)
        tested[variation.name] = {variation.name: cfg}
    for variation in tests:
        option = _check_name("--test-variation", variation.name, configs)
        if variation.source not in tested:
            raise ValueError(
                f"{option}={variation.source}: no such variation; expected one of "
                f"{', '.join(tested)}"
            )
        cfg = Config(configs[variation.source].to_dict())
        _merge(option, cfg, variation.settings)
        tested[variation.source][variation.name] = configs[variation.name] = cfg
    _check_evaluated_alike(configs)
    runs = []
    for seed in seeds:
        for name, own in tested.items():
            folder = Path(work_dir) / f"{name}-{seed}"
            own = {test: Config(cfg.to_dict()) for test, cfg in own.items()}
            for cfg in own.values():
                cfg.merge_from_dict({"randomness.seed": seed})
            runs.append(Run(name, seed, folder, own))
            runs[-1].check_settings()
    return runs


def _check_name(option: str, name: str, others: Iterable[str]) -> str:
    """Return the option with the name, after checking that the name is usable."""
    if not re.fullmatch(r"\w[\w.+-]*", name) or name == "train":
        raise ValueError(
            f"{option} {name}: expected letters, digits and . _ + -, since it becomes "
            "the name of a folder, and not 'train'"
        )
    if name in others:
        raise ValueError(f"{option} {name}: this name was given before")
    return f"{option} {name}"


def _make_config(option: str, variation: Variation, epochs: int | None) -> Config:
    """Return the config of a variation, without a seed."""
    path = variation.source
    try:
        cfg = read_config(path)
    except FileNotFoundError as error:
        raise ValueError(f"{option}: {error}") from None
    except Exception as error:  # a config is a program, which can raise anything
        raise ValueError(
            f"{option}: {path} cannot be read, {type(error).__name__}: {error}"
        ) from None
    _merge(option, cfg, variation.settings)
    try:
        if epochs is not None:
            set_epochs(cfg, epochs)
        find_evaluator(cfg)
    except ValueError as error:
        raise ValueError(f"{option}: {path}: {error}") from None
    # Only the test after the training is compared.
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    return cfg


def _merge(option: str, cfg: Config, settings: Mapping[str, object]) -> None:
    """Override settings, in place."""
    settings = dict(settings)
    try:
        if "data_root" in settings:
            set_data_root(cfg, settings.pop("data_root"))
        if "head" in settings:
            set_classifier(cfg.model, read_config(settings.pop("head")).model)
        cfg.merge_from_dict(settings)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        message = error.args[0] if error.args else type(error).__name__
        raise ValueError(f"{option}: {message}") from None


def _check_evaluated_alike(configs: Mapping[str, Config]) -> None:
    """Check that all variations are evaluated on the same images in the same way."""
    name, *others = configs
    first = find_evaluator(configs[name])[1]
    for other in others:
        found = first_difference(first, find_evaluator(configs[other])[1])
        if found:
            raise ValueError(
                f"variations {name} and {other} differ in test_evaluator.{found}; "
                "expected the same evaluation of all"
            )
