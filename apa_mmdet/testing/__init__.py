"""What tests and analysis tools share: detectors, checks of a conversion, figures.

Nothing is imported here; take what is needed from its module. With numpy only:

- :mod:`.random_lvis`: LVIS annotations and detections of any size, without images;
- :mod:`.lvis_evaluators`: this package's LVIS evaluation and two others, timed.

With torch only:

- :mod:`.memory`: bytes saved for backward, peak memory;
- :mod:`.timing`: time on the device and on the host, GPU launches, the machine;
- :mod:`.benchmark`: options, tables and charts of tools that measure;
- :mod:`.models`: what a model with random weights needs before it is compared
  (``quiet_mmdet`` in it is for MMDetection);
- :mod:`.differences` and :mod:`.wiring`: what a conversion changed, and whether every
  call reaches its activation;
- :mod:`.library_models` and :mod:`.library_coverage`: models of transformers,
  diffusers, timm and torchvision, and whether their conversion is complete and trains;
- :mod:`.gpu_stand_in`: launches of GPU kernels, recorded or run without a GPU.

With MMDetection:

- :mod:`.configs`: reading configs, removing checkpoints from them, their ReLU twins;
- :mod:`.small_detectors`: configs of detectors that take a step in half a second;
- :mod:`.images`: made-up images and annotations;
- :mod:`.training_step`: repeatable steps of whole detectors, for benchmarks;
- :mod:`.families`: one config of each detector family in MMDetection;
- :mod:`.coverage`: whether their conversion is complete and trains;
- :mod:`.ablation`: variations of a config, trained with several seeds and compared;
- :mod:`.closeness`: how close a converted detector starts to the unconverted one.
"""
