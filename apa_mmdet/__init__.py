"""APA and AGLU activations, gates and classification heads for MMDetection 3.x.

A config needs one line, since importing the package registers everything in it::

    custom_imports = dict(imports=['apa_mmdet'], allow_failed_imports=False)

If mmengine is installed, the import first checks that torch, mmcv and mmdet are
installed and compatible, and then runs :func:`_install`, the complete list of what
takes effect. Without mmengine nothing takes effect: :mod:`apa_mmdet.ops`,
:mod:`apa_mmdet.layers`, :mod:`apa_mmdet.conversion` and :mod:`apa_mmdet.optim` then
need only torch, and :mod:`apa_mmdet.evaluation` only numpy, pycocotools and tqdm.
"""

from __future__ import annotations

from importlib import import_module

from .requirements import check_requirements, is_installed
from .version import __version__

__all__ = ["__version__"]


def _install() -> None:
    """Install everything that takes effect on import; the modules only define it.

    The comments say what changes for models that use nothing from this package.
    """
    from .compat.multimodal import leave_out_broken_multimodal

    # Where the installed transformers lacks what MMPretrain's multimodal models import,
    # mmdet, which imports MMPretrain if it is installed, can do so without them.
    leave_out_broken_multimodal()

    from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
    from mmengine.registry import MODELS

    from . import compat
    from .conversion import add_rules
    from .engine import best_figures, checkpoint, flops
    from .layers import AGLU, APA
    from .models import conversion_rules
    from .models.calibration import roi_head
    from .optim.constructor import APAOptimWrapperConstructor

    # torch.load(weights_only=True), the default since torch 2.6, also reads what
    # MMEngine writes into checkpoints, and argparse.Namespace. It returns the numpy
    # arrays of any file as compat.stand_ins.SafeArray, a subclass of numpy.ndarray.
    compat.allow_mmengine_checkpoints()
    # OneDL's MMEngine no longer runs the code in a checkpoint that torch rejects.
    compat.refuse_untrusted_checkpoints()
    # MMEngine reads downloaded checkpoints with weights_only=True as well.
    compat.refuse_untrusted_downloads()
    # lvis-api runs on numpy 1.24 and later; numpy itself does not change.
    compat.restore_np_float_in_lvis()
    # A local checkpoint that cannot be read raises an error that says why, and
    # package://NAME/PATH is a checkpoint in an installed package.
    checkpoint.register_loader()
    # MMEngine's FLOP counter knows AGLU and APA; other operators count as before.
    flops.register_operators()
    # MMEngine's save_best and early stopping know that a higher AP of LVIS is better.
    best_figures.register_names()
    # In mmdet's scope, the default constructor builds the same optimizer as before,
    # except that parameters named lambda_param or kappa_param get no weight decay, in
    # anyone's model. They are then a second parameter group, so a checkpoint that was
    # saved without this import cannot be resumed with it, or the other way round.
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(
        name="DefaultOptimWrapperConstructor", module=APAOptimWrapperConstructor
    )
    # Only convert_activations() uses these rules about MMDetection's classes.
    add_rules(conversion_rules.RULES)
    # mmdet's RoI heads look for test_cfg.rcnn.calibration; without it they are built as
    # before.
    roi_head.enable()
    # Configs can use the new types below; no existing type is replaced. MODELS is
    # MMEngine's root registry, which every scope can see.
    for layer in (AGLU, APA):
        MODELS.register_module(module=layer)
    for module in (
        "datasets.lvis_format",  # LVISFormatDataset
        "layers.attention",  # APASELayer, APACBAM
        "models",  # APADetector, backbones, losses, heads, predictors, calibrations
        "engine",  # AlignmentHook, ClassFrequencyHook, SetupCheckHook
        "evaluation.metric",  # LVISFastMetric
        "evaluation.calibration_evaluator",  # CalibrationEvaluator
    ):
        import_module(f"{__name__}.{module}")


if is_installed("mmengine"):
    check_requirements()
    _install()
