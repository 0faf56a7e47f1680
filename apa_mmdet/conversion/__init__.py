"""Converting a model's fixed activations to learnable ones, call site by call site.

It needs only torch. In a config, :class:`apa_mmdet.models.APADetector` uses it.

The life of one ReLU
--------------------
Take a residual block that calls one module in two places::

    class Block(nn.Module):
        def __init__(self):
            ...
            self.relu = nn.ReLU()

        def forward(self, x):
            y = self.relu(self.conv1(x))
            return self.relu(self.conv2(y) + x)

1. ``convert_activations(model)`` (``convert.py``) checks what the user chose
   (``options.py``) and lets ``planning.py`` go through the model, each module once.
2. ``planning.py`` sees that ``block.relu`` is of a kind that AGLU can replace
   (``identify.py``, which knows the kinds of ``kinds.py``), so the block's methods are
   read. ``source.py`` parses them; ``walker.py`` visits the statements that can run,
   with the module's attributes as they are (``static_values.py`` evaluates conditions
   and loops); ``call_sites.py`` notes the two calls of ``self.relu``.
3. ``grouping.py`` decides which calls share an activation: none here, so there are two
   sites, ``relu.0`` and ``relu.1``, and two calls to route to them.
4. The options, and the rules that libraries have registered (``rules.py``), say which
   sites are converted. Only now does anything change.
5. ``block.relu`` becomes an ``ActivationSites`` with an AGLU at ``"0"`` and ``"1"``
   that starts as a ReLU. ``rewriting.py`` recompiles ``forward`` with the two calls
   replaced, ::

        y = self.relu["0"](self.conv1(x))
        return self.relu["1"](self.conv2(y) + x)

   puts it in a subclass of ``Block``, and makes that the block's class.
6. ``report.py`` lists both sites, and what is left unconverted with the reason. Given
   ``example_inputs``, ``dry_run.py`` compares it with a forward pass.

Nothing is decided while the model runs: the new ``forward`` is ordinary code, one graph
for ``torch.compile``. The block is still a ``Block``, is copied and pickled as one, and
its weights keep their keys; only ``relu.0.lambda_param`` and the like are added.

Variations
----------
- Of another class, or a user's function: if ``purity.py`` finds in the source that a
  call changes nothing, ``curves.py`` evaluates it on a grid, and ``identify.py``
  compares the values with those of the known kinds. An expression such as
  ``x * torch.sigmoid(x)`` is treated likewise, and replaced by a call.
- One place only: ``block.relu`` becomes the AGLU itself, and nothing is rewritten.
- A loop over the module's own layers: a site for each pass, ``self.relu[f"0_{i}"]``. A
  loop over feature levels, which share their weights: one site.
- Two calls of which only one can run, such as in the branches of a condition on the
  input: they share a site, so that no parameter goes without a gradient.
- A function called inline, ``F.relu(x)``: the sites get a new attribute ``relu``.
- A call in a base class's method, reached by ``super()``: the subclass gets a rewritten
  copy of that version too.
- Passed on as a value (``f(self.relu)``), or called in a loop over the children: it
  cannot be split, so it is one site.
- Never called, with an argument that AGLU cannot express, or in unreadable code: it is
  left unconverted, and the report says why.
- A class with a converter in the rules: that replaces steps 2, 3 and 5. MMDetection's
  residual blocks become those in ``apa_mmdet/models/backbones/residual_block.py``,
  with ``act1``, ``act2``, ... instead of ``relu``.
"""

from .convert import convert_activations
from .report import ConversionReport, Left, Site
from .rewriting import ActivationSites
from .rules import BlockConverter, ModelRules, add_rules

__all__ = [
    "ActivationSites",
    "BlockConverter",
    "ConversionReport",
    "Left",
    "ModelRules",
    "Site",
    "add_rules",
    "convert_activations",
]
