"""Pre-training and long-tailed classification with MMPretrain.

A config of MMPretrain needs one line, since importing this subpackage registers
everything in it::

    custom_imports = dict(
        imports=['apa_mmdet.classification'], allow_failed_imports=False
    )

It is the only part of the package that needs MMPretrain, and nothing else imports it.
The import first checks that MMPretrain is installed and works, and then runs
:func:`_install`, the complete list of what takes effect.
"""

from __future__ import annotations

from importlib import import_module

from ..requirements import check_mmpretrain


def _install() -> None:
    """Install everything that takes effect on import; the modules only define it.

    The comments say what changes for models that use nothing from this package.
    """
    from mmpretrain.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS

    from ..engine.class_frequency_hook import ClassFrequencyHook
    from ..models.losses import APALoss
    from ..optim.constructor import APAOptimWrapperConstructor

    # In MMPretrain's scope as in mmdet's: the default constructor builds the same
    # optimizer as before, except that parameters named lambda_param or kappa_param get
    # no weight decay.
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(
        name="DefaultOptimWrapperConstructor", module=APAOptimWrapperConstructor
    )
    # Configs can use the new types below; no existing type is replaced. These two are
    # those of detectors.
    MODELS.register_module(module=APALoss)
    HOOKS.register_module(module=ClassFrequencyHook)
    for module in (
        "backbones",  # APAResNet, APAResNeXt
        "classifier",  # APAClassifier
        "cosine",  # CosineLinear
        "datasets",  # LongTailDataset, SplitFileDataset
        "head",  # LongTailClsHead
        "metric",  # LongTailAccuracy
        "redraw_hook",  # RedrawActivationsHook
        "se_resnet_cifar",  # SEResNetCIFAR
        "transforms",  # CIFARAutoAugment
    ):
        import_module(f"{__name__}.{module}")


check_mmpretrain()
_install()
