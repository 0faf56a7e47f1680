"""What the data say: pre-activations of a detector, and distributions fitted to them.

It needs SciPy and Matplotlib, which MMDetection installs. ``fit``, ``compare``,
``statistics`` and ``sampling`` need no MMDetection.
``tools/analysis_tools/analyze_activations.py`` is the command; ``docs/analysis.md``
explains its output.

The life of one pre-activation
------------------------------
1. ``run.py`` builds the config's model and data set, and lets the model compute its
   losses, one image at a time.
2. Meanwhile ``collect.py`` watches: a hook on every module, and a torch function mode
   for functions called inline, see what goes into each activation; ``sites.py`` knows
   which modules those are, and names each call as the converted model would. What
   reaches a ``loss_cls`` are a classifier's logits and labels, which ``classifier.py``
   sorts by role, class group and class.
3. ``sampling.py`` chooses which values count, and draws how often the image counts in
   each bootstrap replicate, from the image's number only.
4. ``statistics.py`` counts them: a ``Histogram`` for each site and class group, a
   ``Reservoir`` for the classes. Both are exact whatever the order and the number of
   processes, so the parts of several processes add up to what one would have counted.
5. ``fit.py`` fits APA, with the logistic and Gumbel distributions as special cases, and
   ``compare.py`` the four distributions, their distances, and intervals over images.
6. ``report.py`` and ``plots.py`` write what was found.
"""
