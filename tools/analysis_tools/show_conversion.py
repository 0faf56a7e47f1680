"""Show which activations of a config's detector APADetector makes learnable."""

from __future__ import annotations

import argparse

from mmdet.registry import MODELS
from mmengine.config import DictAction

from apa_mmdet.conversion import convert_activations
from apa_mmdet.optim.constructor import decay_advice
from apa_mmdet.testing.configs import read_config, split_conversion
from apa_mmdet.testing.models import quiet_mmdet


def parse_args() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    config_help = (
        "a config file, or one of MMDetection's as mmdet::rtmdet/NAME.py; if it is not "
        "converted, what type='APADetector' would do is shown"
    )
    parser.add_argument("config", help=config_help)
    options = dict(nargs="+", action=DictAction, default={})
    options_help = "settings to override, such as model.parts='[backbone]'"
    parser.add_argument("--cfg-options", help=options_help, **options)
    return parser.parse_args()


def main() -> None:
    """Build the detector, convert it, print the report."""
    args = parse_args()
    try:
        cfg = read_config(args.config, args.cfg_options)
        options = split_conversion(cfg.model)
        with quiet_mmdet():
            report = convert_activations(MODELS.build(cfg.model), **options)
            advice = decay_advice(cfg.get("optim_wrapper"))
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(report)
    print(f"\nWeight decay: {advice or 'none for lambda and kappa.'}")


if __name__ == "__main__":
    main()
