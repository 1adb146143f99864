"""The one door to Opacus: per-record gradients, clipping, noise and accounting.

Opacus computes one gradient a text, but the unit to protect is a record of many texts. `RecordHooks` sums the texts'
gradients by record before any norm is taken, so clipping bounds what a whole record can do (Abadi et al., 2016,
arXiv 1607.00133, with the record as the example).
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from opacus.accountants.utils import get_noise_multiplier
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import nn

from common.errors import InvalidSetting, UnknownName
from common.privacy import PrivacySpend

ACCOUNTANTS = ("prv", "rdp")
LEAST_BY_PRV = 0.05
SIGMA_SLACK = 0.005
"""Share of epsilon that calibration may leave unspent."""
MOST_BOUNDS = 40


class RecordHooks(GradSampleHooks):  # type: ignore[misc]  # opacus ships no types
    """Per-record gradients of a model whose batch dimension is texts.

    Several forward passes may precede one backward pass: set `owner` before each to say which record every text of the
    pass belongs to. After the backward pass each trained parameter has ``grad_sample`` of shape [records, *shape].

    Parameters
    ----------
    model
        Its trainable modules get hooks; it is not wrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.owner = torch.zeros(0, dtype=torch.int64)
        self.records = 0
        self._seen: dict[nn.Module, list[tuple[torch.Tensor, list[torch.Tensor]]]] = {}
        self._trained: list[Any] = [each for each in model.parameters() if each.requires_grad]
        super().__init__(model, batch_first=True, loss_reduction="sum", strict=False)

    def begin(self, records: int) -> None:
        """Start a batch of this many records; what one that failed half-way left behind is dropped."""
        self.records = records
        self._seen.clear()
        for parameter in self._trained:
            parameter.grad, parameter.grad_sample = None, None

    def backward(self, losses: torch.Tensor) -> None:
        """Run the backward pass of the records' losses, float32 [records]."""
        with warnings.catch_warnings():
            # torch tells us that the lowest adapted layer sees frozen inputs; its hook gets all it needs all the same
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            losses.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def capture_activations_hook(self, module: nn.Module, forward_input: Any, _forward_output: Any) -> None:
        """Keep what the layer saw, and whose it was."""
        if self.hooks_enabled and module.training and torch.is_grad_enabled():
            self._seen.setdefault(module, []).append((self.owner, [tensor.detach() for tensor in forward_input]))

    def capture_backprops_hook(
        self, module: nn.Module, _forward_input: Any, forward_output: Any, loss_reduction: str, batch_first: bool
    ) -> None:
        """Turn one layer's backward pass into gradients by record (passes come back in reverse order)."""
        if not self.hooks_enabled:
            return
        owner, activations = self._seen[module].pop()
        sampler = self.GRAD_SAMPLERS[type(module)]
        # in float32 whatever the forward pass was in: texts are added up by record, and sums of halves lose their ends
        backprops, seen = forward_output[0].detach().float(), [tensor.float() for tensor in activations]
        for parameter, by_text in sampler(module, seen, backprops).items():
            if parameter.grad_sample is None:
                parameter.grad_sample = torch.zeros((self.records, *parameter.shape), device=parameter.device)
            parameter.grad_sample.index_add_(0, owner, by_text.to(parameter.grad_sample.dtype))


class PrivateStep:
    """Clipped and noised gradient steps over Poisson-sampled records.

    Parameters
    ----------
    parameters
        What is trained, in a fixed order.
    hooks
        The hooks on the model that owns them.
    learning_rate
        Of the gradient steps.
    noise_multiplier
        Sigma; 0 adds no noise.
    clip
        C, the bound on a record's gradient norm.
    expected_records
        Sample rate times population: the fixed denominator of the mean.
    generator
        Source of the noise.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        hooks: RecordHooks,
        *,
        learning_rate: float,
        noise_multiplier: float,
        clip: float,
        expected_records: float,
        generator: torch.Generator,
    ) -> None:
        self._hooks = hooks
        self._optimizer = DPOptimizer(
            torch.optim.SGD(parameters, lr=learning_rate),
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=expected_records,
            loss_reduction="mean",
            generator=generator,
        )

    def accumulate(self) -> None:
        """Clip the records of the last backward pass and add them to the running sum."""
        self._drop_non_finite()
        self._optimizer.signal_skip_step(do_skip=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def finish(self) -> None:
        """Add noise once and move the parameters; with nothing accumulated the step is noise alone, never skipped."""
        for parameter in self._optimizer.params:
            parameter.grad_sample = torch.zeros((0, *parameter.shape), device=parameter.device)
        self._optimizer.signal_skip_step(do_skip=False)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def noised_sum(self) -> list[torch.Tensor]:
        """Return, a parameter each, what was accumulated with noise added once, and move nothing.

        With `expected_records` 1 it is the clipped sum itself, for a step that is one over all nodes.
        """
        for parameter in self._optimizer.params:
            parameter.grad_sample = torch.zeros((0, *parameter.shape), device=parameter.device)
        self._optimizer.signal_skip_step(do_skip=False)
        self._optimizer.pre_step()
        sums = [parameter.grad.detach().clone() for parameter in self._optimizer.params]
        self._optimizer.zero_grad(set_to_none=True)
        return sums

    def _drop_non_finite(self) -> None:
        """Zero the records whose gradient is not finite: a record may say nothing, but never everything."""
        samples = [parameter.grad_sample for parameter in self._optimizer.params]
        finite = torch.stack([sample.flatten(1).isfinite().all(1) for sample in samples]).all(0)
        for sample in samples:  # always: to ask whether there are any would wait for the GPU
            sample.masked_fill_(~finite.view(-1, *[1] * (sample.ndim - 1)), 0.0)


def calibrate_sigma(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return the noise multiplier that spends `epsilon`, and at most 0.5% less, over all `steps` by the PRV accountant.

    By the RDP accountant, which spends up to a sixth less, where PRV is of no use: below epsilon 0.05, of which the
    0.01 that Opacus' bound adds as its error would be a fifth, and where its numbers overflow.

    Raises
    ------
    InvalidSetting
        When epsilon, delta, rate or steps make no sense, or no noise is enough.
    """
    if not 0 < epsilon < float("inf") or not 0 < delta < 1 or not 0 < sample_rate <= 1 or steps < 1:
        raise InvalidSetting(
            f"epsilon={epsilon}, delta={delta}, sample rate={sample_rate}, steps={steps}",
            expected="a finite epsilon > 0, 0 < delta < 1, 0 < rate <= 1, steps >= 1",
        )
    if epsilon >= LEAST_BY_PRV and (sigma := _sigma_by_prv(epsilon, delta, sample_rate, steps)):
        return sigma
    try:
        with _accounting():
            return float(
                get_noise_multiplier(
                    target_epsilon=epsilon,
                    target_delta=delta,
                    sample_rate=sample_rate,
                    steps=steps,
                    accountant="rdp",
                    epsilon_tolerance=epsilon / 100,
                )
            )
    except ValueError as error:
        raise InvalidSetting(
            f"epsilon {epsilon} at delta {delta}",
            expected="an epsilon that some noise can keep",
            mend="raise --epsilon or --delta",
        ) from error


def _sigma_by_prv(epsilon: float, delta: float, sample_rate: float, steps: int) -> float | None:
    """Return sigma by false position on log epsilon over log sigma, nearly a line; None where PRV gives no bound."""
    goal, sigma = np.log(epsilon * (1 - SIGMA_SLACK / 2)), 1.0
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    for _ in range(MOST_BOUNDS):
        found = _epsilon(((sigma, sample_rate, steps),), delta, "prv")
        if not 0 < found < float("inf"):
            return None
        if epsilon * (1 - SIGMA_SLACK) <= found <= epsilon:
            return sigma
        here = (float(np.log(sigma)), float(np.log(found)))
        low, high = (low, here) if found <= epsilon else (here, high)
        if low is None or high is None:
            # where one end is missing, epsilon falls about as one over sigma
            sigma = float(np.exp(here[0] + np.clip(1.1 * (here[1] - goal), -0.7, 1.5)))
        else:
            share = (low[1] - goal) / (low[1] - high[1])
            sigma = float(np.exp(low[0] + np.clip(share, 0.03, 0.97) * (high[0] - low[0])))
    return None


@contextmanager
def _accounting() -> Iterator[None]:
    """Pass over what the accountants warn of; both give an upper bound all the same."""
    with warnings.catch_warnings():
        # the best order lies outside the list: a tighter bound exists, this one holds
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        # log(1 - q) at sample rate 1, where it rightly is minus infinity
        warnings.filterwarnings("ignore", "divide by zero encountered in log", RuntimeWarning)
        yield


def epsilon_of(spend: PrivacySpend, accountant: str = "prv") -> float:
    """Return the epsilon of everything in the spend, composed.

    Parameters
    ----------
    spend
        Steps of the Poisson-subsampled Gaussian mechanism.
    accountant
        "prv" (Gopi et al., 2021, arXiv 2106.02848) for reports, infinite where it overflows; "rdp" (Mironov, 2017,
        arXiv 1702.07476) for checks.
    """
    if accountant not in ACCOUNTANTS:
        raise UnknownName("accountant", accountant, list(ACCOUNTANTS))
    if not spend.steps:
        return 0.0
    if any(sigma <= 0 for sigma, _, _ in spend.steps):
        return float("inf")
    return _epsilon(spend.steps, spend.delta, accountant)


def lowest_epsilon(spend: PrivacySpend) -> float:
    """Return the lower of the two accountants' epsilons: both are upper bounds, so it is true."""
    return min(epsilon_of(spend, "prv"), epsilon_of(spend, "rdp"))


def epsilon_within(budget: float, spend: PrivacySpend) -> float:
    """Return an epsilon of the spend by RDP, or where that is over `budget` the lower of both accountants'.

    RDP is cheap, so a node asks it before every step; PRV is tighter, and noise that is calibrated by it spends the
    budget where RDP would say that it is overdrawn.
    """
    found = epsilon_of(spend, "rdp")
    return found if found <= budget else lowest_epsilon(spend)


def rdp_bound(spend: PrivacySpend, orders: Sequence[int]) -> float:
    """Return the epsilon that Renyi divergences of whole orders alone give: looser than `epsilon_of`, and comparable.

    Every accountant computes whole orders by the same finite sum, so two of them must agree to rounding; for orders in
    between Opacus sums a series where others bound it.

    Parameters
    ----------
    spend
        As for `epsilon_of`, not empty.
    orders
        Whole numbers above 1.
    """
    total = sum(
        compute_rdp(q=rate, noise_multiplier=sigma, steps=count, orders=list(orders))
        for sigma, rate, count in spend.steps
    )
    with _accounting():
        epsilon, _ = get_privacy_spent(orders=list(orders), rdp=total, delta=spend.delta)
    return float(epsilon)


@functools.lru_cache(maxsize=1024)  # pure, and the nodes of a simulation spend alike
def _epsilon(steps: tuple[tuple[float, float, int], ...], delta: float, accountant: str) -> float:
    with _accounting():
        if accountant == "rdp":
            orders = RDPAccountant.DEFAULT_ALPHAS
            total = sum(count * _rdp_of_step(sigma, rate) for sigma, rate, count in steps)
            epsilon, _ = get_privacy_spent(orders=orders, rdp=total, delta=delta)
            return float(epsilon)
        engine = PRVAccountant()
        engine.history = [tuple(step) for step in steps]
        try:
            with np.errstate(over="raise"):
                return float(engine.get_epsilon(delta=delta))
        except FloatingPointError:  # noise too small for its grid
            return float("inf")


@functools.lru_cache(maxsize=256)  # it is nearly all of the work, and each round asks for the same few
def _rdp_of_step(sigma: float, rate: float) -> np.ndarray:
    rdp: np.ndarray = compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=RDPAccountant.DEFAULT_ALPHAS)
    return rdp
