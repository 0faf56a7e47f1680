"""Variations of a config, each trained with several seeds, tested and compared.

:mod:`.variations` merges and checks the settings, which gives one :class:`.run.Run` for
each variation and seed. A run knows its folder and the commands that are missing there;
:mod:`.jobs` executes those of several runs side by side; :mod:`.report` evaluates the
predictions that they leave, and makes the tables. The folder of a run::

    WORK_DIR/NAME-SEED/
      train.config.py, train/          settings and work dir of the training
      TEST.config.py, TEST/            and of each test; TEST is the variation's name,
                                       or that of one that only tests its weights
      TEST/predictions.bbox.json.gz    what is evaluated, in LVIS's results format; of
                                       a classifier predictions.top1.json.gz
      log.txt                          what all of it printed

What is complete is not repeated, and a training continues from its last checkpoint.
"""
