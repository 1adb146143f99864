"""What happens at a node between request and reply: check, charge, train, and only then answer."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.dataset import NodeData
from client.dp import calibrate_sigma, epsilon_of
from client.ledger import Ledger
from client.train import TrainPlan, train
from common.encoder.adapter import TextEncoder
from common.encoder.cache import HiddenCache
from common.errors import EncoderError, InvalidSetting
from common.ids import arrays_sha256, stable_hash
from common.instructions import TrainRequest
from common.privacy import PrivacySpend
from common.updates import AdapterUpdate, UpdateMeta

SUPPORTED_UNITS = ("user", "example", "off")

# pure, and the same few inputs come every round
_sigma_for = functools.lru_cache(maxsize=256)(calibrate_sigma)


@dataclass(frozen=True, slots=True)
class Node:
    """One node's identity, data and ledger.

    Parameters
    ----------
    client
        Its id.
    data
        Its clicks.
    ledger_path
        Where its ledger is.
    secret_seed
        Source of its sampling and noise. A simulation derives it from the run's seed; None, on a real node, takes the
        ledger's own, drawn from the operating system and told to nobody, since who knows it can subtract the noise.
    """

    client: str
    data: NodeData
    ledger_path: Path
    secret_seed: int | None

    def answer(
        self, request: TrainRequest, base: Mapping[str, np.ndarray], encoder: TextEncoder, cache: HiddenCache
    ) -> AdapterUpdate:
        """Train for one round and return the update.

        Raises
        ------
        BudgetExceeded
            Before any training, when the round does not fit the budget.
        EncoderError
            When the request is for other base weights.
        InvalidSetting
            When the privacy terms cannot be kept on this node's data.
        """
        if request.encoder_sha256 != encoder.sha256:
            raise EncoderError(
                f"request for base weights {request.encoder_sha256[:12]}",
                expected=encoder.sha256[:12],
                consequence="the node does not train",
            )
        sigma = self._sigma(request)
        spend = self._spend(request, sigma)
        release = self._release(request, base)
        secret, epsilon = self._charge(release, request, spend)
        plan = self._plan(request, sigma, stable_hash("release", secret, release))
        trained = train(plan, base, self.data, encoder, cache)
        meta = UpdateMeta(
            client=self.client,
            base_version=request.base_version,
            strategy=request.strategy,
            round=request.round,
            examples=trained.expected_records,
            privacy=spend,
            epsilon=epsilon,
            # the loss is computed from the data without noise, so it leaves the node only without a guarantee
            metrics={} if spend else {"loss": trained.loss},
        )
        return AdapterUpdate(meta, trained.arrays)

    def _sigma(self, request: TrainRequest) -> float:
        terms = request.privacy
        if terms.unit not in SUPPORTED_UNITS:
            raise InvalidSetting(
                f"privacy unit {terms.unit!r} at the node", expected=f"one of {', '.join(SUPPORTED_UNITS)}"
            )
        if terms.unit == "off":
            return 0.0
        records = len(self.data.population(terms.unit, request.objective.window))
        if terms.delta * records >= 1:
            raise InvalidSetting(
                f"delta {terms.delta} on a node of {records} records",
                expected=f"delta below 1/{records}",
                consequence="the node does not train",
                mend="lower --delta",
            )
        return _sigma_for(terms.epsilon, terms.delta, terms.sample_rate, request.planned_steps)

    @staticmethod
    def _spend(request: TrainRequest, sigma: float) -> PrivacySpend | None:
        terms = request.privacy
        if terms.unit == "off":
            return None
        return PrivacySpend(terms.unit, terms.delta, ((sigma, terms.sample_rate, request.objective.local_steps),))

    def _release(self, request: TrainRequest, base: Mapping[str, np.ndarray]) -> str:
        """Name the release after all that it is computed from.

        Noise is derived from this name. Were anything left out, a server could ask twice with that thing changed, get
        the same noise twice, and subtract it.
        """
        asked = hashlib.sha256(repr(sorted(request.flat().items())).encode()).hexdigest()
        parts = (arrays_sha256(base.items()), asked, self.data.digest())
        return f"{request.run}/{request.round}/{hashlib.sha256('/'.join(parts).encode()).hexdigest()}"

    def _charge(self, release: str, request: TrainRequest, spend: PrivacySpend | None) -> tuple[int, float | None]:
        """Put the spend on disk; return the secret that seeds the release, and epsilon so far."""
        if spend is None and self.secret_seed is not None:
            return self.secret_seed, None
        ledger = Ledger(self.ledger_path, self.client)
        try:
            secret = ledger.secret() if self.secret_seed is None else self.secret_seed
            if spend is None:
                return secret, None
            state = ledger.charge(
                release, spend, request.privacy.epsilon, functools.partial(epsilon_of, accountant="rdp")
            )
        finally:
            ledger.close()
        # both are upper bounds, so the lower one is true
        return secret, min(epsilon_of(state.spend, "prv"), epsilon_of(state.spend, "rdp"))

    @staticmethod
    def _plan(request: TrainRequest, sigma: float, seed: int) -> TrainPlan:
        goal = request.objective
        return TrainPlan(
            trained=request.trained,
            unit=request.privacy.unit,
            sample_rate=request.privacy.sample_rate,
            local_steps=goal.local_steps,
            noise_multiplier=sigma,
            clip=goal.clip,
            window=goal.window,
            negatives=goal.negatives,
            temperature=goal.temperature,
            learning_rate=goal.learning_rate,
            seed=seed,
        )
