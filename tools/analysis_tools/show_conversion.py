"""Show which activations of a config's detector APADetector makes learnable."""

from __future__ import annotations

import argparse
import inspect
import logging
import os.path as osp

from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from apa_mmdet.conversion import convert_activations
from apa_mmdet.optim import decay_advice


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "config",
        help="a config file, or one of MMDetection's as mmdet::rtmdet/NAME.py; it need "
        "not be converted: then the table is that of type='APADetector'",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        help="settings to override, such as model.parts='[backbone]' model.init=silu",
    )
    return parser.parse_args()


def main() -> None:
    """Build the detector, convert it, print the report."""
    args = parse_args()
    is_packaged = "::" in args.config
    if not is_packaged and not osp.isfile(args.config):
        raise SystemExit(f"no such config file: {args.config}")
    try:
        cfg = get_config(args.config) if is_packaged else Config.fromfile(args.config)
    except FileNotFoundError as error:
        raise SystemExit(f"{args.config}: {error}") from None
    cfg.merge_from_dict(args.cfg_options)
    if "model" not in cfg:
        raise SystemExit(f"{args.config} has no model; give a detector's config")
    init_default_scope(cfg.get("default_scope", "mmdet"))
    # How the base was built is of no interest here.
    MMLogger.get_instance("show_conversion", log_level=logging.WARNING)

    names = list(inspect.signature(convert_activations).parameters)[1:]
    options = {name: cfg.model.pop(name) for name in names if name in cfg.model}
    if cfg.model.type == "APADetector":
        cfg.model.type = cfg.model.pop("base_type", None)
    try:
        model = MODELS.build(cfg.model)
        print(convert_activations(model, **options))
    except (KeyError, TypeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    advice = decay_advice(cfg.get("optim_wrapper"))
    print(f"\nWeight decay: {advice or 'none for lambda and kappa.'}")


if __name__ == "__main__":
    main()
