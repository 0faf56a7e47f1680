"""The hook that starts activations at the distribution of what goes into them."""

from __future__ import annotations

import json
import os.path as osp
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.dist import (
    all_gather_object,
    broadcast,
    get_rank,
    get_world_size,
    master_only,
)
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..analysis.fit import APAFit, fit_apa
from ..layers import AGLU, APA
from ..models.losses import APALoss
from ..ops import formula
from .setup_check_hook import unwrapped_model

# The most values kept from one call of a site, and fitted for one parameter pair.
_PER_CALL, _PER_FIT = 100_000, 5_000
# Logits of a classifier that differ by less have not learnt anything.
_MIN_SPREAD = 0.01


@dataclass
class Alignment:
    """What happened at one site; numbers are means over its parameter pairs.

    Attributes:
        site: Name of the module.
        values: Number of values collected for each pair.
        lam: Fitted lam, None if the site was left as it is.
        kappa: Fitted kappa, None if the site was left as it is.
        old_lam: lam before the fit.
        old_kappa: kappa before the fit.
        change: Root mean square of the output's change over that of the output before.
        reason: Why the site, or some of its pairs, were left as they are.
    """

    site: str
    values: int
    lam: float | None
    kappa: float | None
    old_lam: float
    old_kappa: float
    change: float = 0.0
    reason: str | None = None

    def __str__(self) -> str:
        start = f"{self.site}: lam {self.old_lam:.3g}, kappa {self.old_kappa:.3g}"
        if self.lam is None:
            return f"{start} kept, {self.reason}"
        kept = "" if self.reason is None else f"; kept {self.reason}"
        return (
            f"{start} -> {self.lam:.3g}, {self.kappa:.3g} from {self.values} values; "
            f"the output changes by {self.change:.1%}{kept}"
        )


@HOOKS.register_module()
class AlignmentHook(Hook):
    """Set lam and kappa to those of the distribution that goes into each site.

    Before the first iteration, some training batches pass through the model without
    gradients, and each site's input is fitted by maximum likelihood to the
    distribution whose distribution function is APA. Other parameters, buffers and the
    random states stay as they were. A resumed run does not fit again.

    A gate gets the lam and kappa that fit its input best without a shift, because it
    has none. A classifier's fit has a shift: lam and kappa are set, and the bias moves
    so that the mean score stays what it was. A classifier that has not learnt anything
    yet gives all classes the same logit and is left as it is; name a later iteration
    in ``at`` to align it.

    Source: a reconstruction of the alignment that Alexandridis et al. (ECCV 2024)
    argue for; they publish no procedure.

    Args:
        gates: Whether to align the APA layers.
        classifiers: Whether to align APALoss with learnable lam and kappa.
        activations: Patterns, as in :mod:`fnmatch`, of the names of AGLU layers to
            align; by default none. Aligning them changes what pretrained weights mean;
            the log says by how much.
        at: Iterations before which to align; 0 is the start of training.
        num_images: Number of images that pass through the model, over all processes.

    Raises:
        ValueError: If an argument is out of range, ``at`` is not below the training's
            iterations, a pattern matches no AGLU, or the model has nothing to align.
    """

    def __init__(
        self,
        gates: bool = True,
        classifiers: bool = True,
        activations: str | Sequence[str] = (),
        at: Sequence[int] = (0,),
        num_images: int = 64,
    ) -> None:
        at = (at,) if isinstance(at, int) else tuple(at)
        if not at or any(type(i) is not int or i < 0 for i in at):
            raise ValueError(f"at={at!r}, expected iterations >= 0, such as (0, 1000)")
        if not isinstance(num_images, int) or num_images < 1:
            raise ValueError(f"num_images={num_images!r}, expected an integer >= 1")
        self.gates, self.classifiers = gates, classifiers
        is_one = isinstance(activations, str)
        self.activations = (activations,) if is_one else tuple(activations)
        self.at = at
        self.num_images = num_images

    def before_train(self, runner: Runner) -> None:
        """Check the sites, and align them if training starts here."""
        self.sites(unwrapped_model(runner))
        if max(self.at) >= runner.max_iters:
            raise ValueError(
                f"AlignmentHook: at={self.at}, expected iterations below the "
                f"{runner.max_iters} of this training"
            )
        if runner.iter == 0 and 0 in self.at:
            self._align(runner, 0)

    def after_train_iter(self, runner: Runner, batch_idx: int, *args, **kwargs) -> None:
        """Align before the iterations of ``at``."""
        if runner.iter + 1 in self.at:
            self._align(runner, runner.iter + 1)

    def sites(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the modules to align by name.

        Raises:
            ValueError: If a pattern matches no AGLU, or there is nothing to align.
        """
        modules = dict(model.named_modules())
        sites, unmatched = {}, set(self.activations)
        for name, module in modules.items():
            matching = {p for p in self.activations if fnmatch(name, p)}
            if isinstance(module, AGLU) and matching:
                unmatched -= matching
                sites[name] = module
            elif (self.gates and isinstance(module, APA)) or (
                self.classifiers
                and isinstance(module, APALoss)
                and module.learnable is not None
            ):
                sites[name] = module
        if unmatched:
            names = [n for n, module in modules.items() if isinstance(module, AGLU)]
            raise ValueError(
                f"AlignmentHook: activations={sorted(unmatched)} match none of the "
                f"model's {len(names)} AGLU layers"
                + (f", whose names are like {names[0]!r}" if names else "")
            )
        if not sites:
            raise ValueError(
                "AlignmentHook found nothing to align: the model has no APA gate and "
                "no APALoss with learnable='shared' or 'class'; remove the hook, or "
                "name AGLU layers in activations"
            )
        return sites

    def _align(self, runner: Runner, iteration: int) -> None:
        model = unwrapped_model(runner)
        sites = self.sites(model)
        samples = {name: [] for name in sites}
        handles = [
            module.register_forward_pre_hook(_sampler(samples[name]))
            for name, module in sites.items()
        ]
        try:
            autocast = runner.optim_wrapper.optim_context(runner.model)
            with _undisturbed(model), torch.no_grad(), autocast:
                for batch in self._batches(runner):
                    data = model.data_preprocessor(batch, True)
                    model(**data, mode="loss")
        finally:
            for handle in handles:
                handle.remove()
        records = []
        for name, module in sites.items():
            values = np.concatenate(sum(all_gather_object(samples[name]), []) or [[]])
            records.append(_align_site(name, module, values, model))
            runner.logger.info(f"aligned before iteration {iteration}: {records[-1]}")
        # The message hub is kept in checkpoints.
        saved = dict(runner.message_hub.runtime_info.get("alignment") or {})
        saved[str(iteration)] = [asdict(record) for record in records]
        runner.message_hub.update_info("alignment", saved)
        _save(osp.join(runner.work_dir, "alignment.json"), saved)

    def _batches(self, runner: Runner) -> Iterator[dict]:
        """Yield this process's share of the training images, collated.

        The run's own loader is not used, because that would advance its sampler.
        """
        loader = runner.train_loop.dataloader
        generator = torch.Generator().manual_seed(0)
        indices = torch.randperm(len(loader.dataset), generator=generator).tolist()
        # The same number in each process, because a forward pass may communicate.
        share = max(min(self.num_images, len(indices)) // get_world_size(), 1)
        indices = [indices[i % len(indices)] for i in range(share * get_world_size())]
        indices = indices[get_rank() :: get_world_size()]
        size = loader.batch_size or loader.batch_sampler.batch_size
        for start in range(0, len(indices), size):
            batch = [loader.dataset[i] for i in indices[start : start + size]]
            yield loader.collate_fn(batch)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in training mode; restore modes, buffers and random states afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    states = random.getstate(), np.random.get_state()
    model.train()
    try:
        device = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(device):
            yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, training in modes:
            module.training = training


def _sampler(sample: list[np.ndarray]) -> Callable[[nn.Module, tuple], None]:
    """Return a forward pre-hook that adds to ``sample`` what a site sees.

    An array has a column per parameter pair, or per class for a classifier.
    """
    rng = np.random.default_rng(0)  # a fixed stride would meet the same channels

    def keep(module: nn.Module, args: tuple) -> None:
        x = args[0].detach()
        if isinstance(module, APALoss):
            x = x[args[1] >= 0]
        elif module.num_parameters == 1:
            x = x.reshape(-1, 1)
        else:
            default = 1 if x.dim() in (2, 4, 5) else -1
            channels = default if module.channel_dim is None else module.channel_dim
            x = x.movedim(channels, -1).flatten(0, -2)
        rows = max(_PER_CALL // x.shape[1], 1)
        if len(x) > rows:
            chosen = rng.choice(len(x), rows, replace=False)
            x = x[torch.from_numpy(chosen).to(x.device)]
        sample.append(x.float().cpu().numpy())

    return keep


def _align_site(
    name: str, module: nn.Module, values: np.ndarray, model: nn.Module
) -> Alignment:
    """Fit and set one site's parameters, and return what was done."""
    lam, kappa = module.lambda_param, module.kappa_param
    old = lam.detach().clamp(min=0), kappa.detach().clone()
    means = [param.mean().item() for param in old]
    is_classifier = isinstance(module, APALoss)
    classifier = _classifier_of(module, model) if is_classifier else None
    reason, fits = None, {}
    if not len(values):
        reason = "no value reached it"
    elif is_classifier and _spread_of_classes(values) < _MIN_SPREAD:
        reason = "it gives all classes the same logits"
    elif is_classifier and classifier is None:
        reason = "its head has no fc_cls with a bias to keep the scores' mean"
    else:
        values = values.reshape(-1, lam.numel())
        fits, errors = _fit(values, shifted=is_classifier)
        if not fits:
            reason = errors[0]
        elif errors:
            reason = f"for {len(errors)} of {lam.numel()} pairs: {errors[0]}"
    if not fits:
        return Alignment(name, len(values), None, None, *means, reason=reason)
    with torch.no_grad():
        for index, fit in fits.items():
            lam[index], kappa[index] = fit.lam, fit.kappa
        for param in (lam, kappa):
            broadcast(param.data)
        z = torch.from_numpy(values).to(lam.device)
        function = formula.aglu if isinstance(module, AGLU) else formula.apa
        before = function(z, *old)
        if classifier is not None:
            z = z + _keep_mean(classifier, z, before, lam, kappa)
        change = function(z, lam, kappa) - before
    return Alignment(
        *(name, len(values), lam.mean().item(), kappa.mean().item(), *means),
        change=(change.norm() / before.norm()).item(),
        reason=reason,
    )


def _spread_of_classes(logits: np.ndarray) -> float:
    """Return how much the logits (n, C) differ beyond the bias and a common part.

    Weights that are all equal give every class the same logit, apart from the bias.
    """
    if logits.shape[1] == 1:
        return logits.std()
    logits = logits - logits.mean(0)
    return logits.std(1).mean()


def _fit(values: np.ndarray, shifted: bool) -> tuple[dict[int, APAFit], list[str]]:
    """Fit each column of (n, P); return the fits by column, and the others' errors."""
    rng = np.random.default_rng(0)
    if len(values) > _PER_FIT:
        values = values[rng.choice(len(values), _PER_FIT, replace=False)]
    fits, errors = {}, []
    for index, column in enumerate(values.T):
        try:
            fits[index] = fit_apa(column, mu=None if shifted else 0.0)
        except ValueError as error:
            errors.append(str(error))
    return fits, errors


def _classifier_of(loss: nn.Module, model: nn.Module) -> nn.Linear | None:
    for module in model.modules():
        if getattr(module, "loss_cls", None) is loss:
            classifier = getattr(module, "fc_cls", None)
            has_bias = getattr(classifier, "bias", None) is not None
            return classifier if has_bias else None
    return None


def _keep_mean(
    classifier: nn.Linear, z: Tensor, scores: Tensor, lam: Tensor, kappa: Tensor
) -> Tensor:
    """Shift a classifier's bias so that the mean score is that of ``scores``.

    Returns the shift, of the parameters' shape.
    """
    target = scores.mean(0)
    high = torch.full_like(lam, 100.0)
    low = -high
    for _ in range(50):  # bisection: the mean score grows with the shift
        middle = (low + high) / 2
        is_low = formula.apa(z + middle, lam, kappa).mean(0) < target
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    shift = (low + high) / 2
    broadcast(shift)
    classifier.bias += shift
    return shift


@master_only
def _save(path: str, saved: dict) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(saved, file, indent=1)
