"""What happens at a node between request and reply: check, charge, train, and only then answer."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.dataset import NodeData, Population
from client.dp import calibrate_sigma, epsilon_within, lowest_epsilon
from client.ledger import DEFAULT_EPOCH, Ledger, Purpose
from client.postprocess import add_noise, clip_whole
from client.train import Trained, TrainPlan, train
from common.encoder.adapter import TextEncoder
from common.encoder.cache import HiddenCache
from common.errors import EncoderError, InvalidSetting
from common.ids import arrays_sha256, stable_hash
from common.instructions import TrainRequest
from common.privacy import PrivacySpend
from common.ranks import cut, ranks_of
from common.updates import AdapterUpdate, UpdateMeta

# pure, and the same few inputs come every round
_sigma_for = functools.lru_cache(maxsize=256)(calibrate_sigma)


@dataclass(frozen=True, slots=True)
class SecretSum:
    """The promise that an update leaves only as part of a sum.

    Parameters
    ----------
    name
        Of this one attempt at a sum: a second attempt is another release.
    noisers
        The least number of nodes in the sum whose own noise the server does not learn.
    """

    name: str
    noisers: int


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
    data_epoch
        Under which name its data is charged; see `Ledger`.
    rank
        The largest rank that the node trains: of a larger adapter it takes the first columns and rows. None: any.
    """

    client: str
    data: NodeData
    ledger_path: Path
    secret_seed: int | None
    data_epoch: str = DEFAULT_EPOCH
    rank: int | None = None

    def answer(
        self,
        request: TrainRequest,
        base: Mapping[str, np.ndarray],
        encoder: TextEncoder,
        cache: HiddenCache,
        secret_sum: SecretSum | None = None,
    ) -> AdapterUpdate:
        """Train for one round and return the update.

        Parameters
        ----------
        request
            What is asked.
        base
            The global adapter that the round starts from.
        encoder, cache
            The shared BERT and the hidden states of the catalogue.
        secret_sum
            Given when the update leaves under masks alone.

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
                mend="name one encoder in the node's configuration and in the run's settings",
            )
        if secret_sum is not None and request.uplink != "float32":
            raise InvalidSetting(
                f"uplink {request.uplink!r} in a secret sum",
                expected="float32: a sum rounds to a grid of its own, the same for all nodes",
                consequence="the node does not train",
            )
        base = self._held(base, request, secret_sum)
        own_noise = _own_noise(request, secret_sum)
        sigma = self._sigma(request)
        spend = self._spend(request, sigma)
        release = self._release(request, base, secret_sum)
        secret, epsilon = self._charge(_charged_as(release, request, sigma), request, spend)
        seed = stable_hash("release", secret, release)
        trained = train(self._plan(request, own_noise * sigma, seed), base, self.data, encoder, cache)
        meta = UpdateMeta(
            client=self.client,
            base_version=request.base_version,
            strategy=request.strategy,
            round=request.round,
            # the number of records is what unit "client" hides
            examples=1.0 if request.privacy.unit == "client" else trained.expected_records,
            privacy=spend,
            epsilon=epsilon,
            # the loss is computed from the data without noise, so it leaves the node only without a guarantee
            metrics={} if spend or secret_sum else {"loss": trained.loss},
        )
        return AdapterUpdate(meta, _released(trained, request, own_noise * sigma, seed))

    def _held(
        self, base: Mapping[str, np.ndarray], request: TrainRequest, secret_sum: SecretSum | None
    ) -> Mapping[str, np.ndarray]:
        """Return what the node holds of the adapter; a smaller rank is refused where updates are only ever summed."""
        full = min(ranks_of({name: array.shape for name, array in base.items()}), default=0)
        if self.rank is None or self.rank >= full:
            return base
        if request.privacy.noise != "local" or secret_sum is not None:
            raise InvalidSetting(
                f"a node of rank {self.rank} in a sum of updates of rank {full}",
                expected="the full rank: a sum is divided by all nodes, also by those that hold no such column",
                consequence="the node does not train",
                mend="raise 'rank' in the node's configuration, or use --noise local without --secure-aggregation",
            )
        return cut(base, self.rank)

    def _sigma(self, request: TrainRequest) -> float:
        terms = request.privacy
        if terms.unit == "off":
            return 0.0
        records = 1 if terms.unit == "client" else len(self._population(request))
        if terms.delta * records >= 1:
            raise InvalidSetting(
                f"delta {terms.delta} on a node of {records} records",
                expected=f"delta below 1/{records}",
                consequence="the node does not train",
                mend="lower --delta",
            )
        if terms.noise != "local":
            return request.noise_multiplier
        return _sigma_for(terms.epsilon, terms.delta, terms.rate, request.planned_steps)

    def _population(self, request: TrainRequest) -> Population:
        return self.data.population(request.privacy.unit, request.objective.window, request.objective.replay)

    @staticmethod
    def _spend(request: TrainRequest, sigma: float) -> PrivacySpend | None:
        terms = request.privacy
        if terms.unit == "off":
            return None
        if terms.unit != "client":
            return PrivacySpend(terms.unit, terms.delta, ((sigma, terms.rate, request.objective.local_steps),))
        # drawn by chance, a node is protected by the rounds that it sits out, so each of them costs the same
        steps = request.planned_steps if terms.cohort_rate < 1 else 1
        return PrivacySpend(terms.unit, terms.delta, ((sigma, terms.rate, steps),))

    def _release(self, request: TrainRequest, base: Mapping[str, np.ndarray], secret_sum: SecretSum | None) -> str:
        """Name the release after all that it is computed from.

        Noise is derived from this name. Were anything left out, a server could ask twice with that thing changed, get
        the same noise twice, and subtract it.
        """
        asked = hashlib.sha256(repr(sorted(request.flat().items())).encode()).hexdigest()
        parts = [arrays_sha256(base.items()), asked, self.data.digest()]
        if secret_sum is not None:
            # a sum over other nodes is another release, and the difference of two sums with the same noise would be
            # one node's update; a simulation, whose noise is no secret, gives the name up to repeat itself
            parts.append(f"sum of {secret_sum.noisers}" if self.secret_seed is not None else secret_sum.name)
        return f"{request.run}/{request.round}/{hashlib.sha256('/'.join(parts).encode()).hexdigest()}"

    def _charge(self, release: str, request: TrainRequest, spend: PrivacySpend | None) -> tuple[int, float | None]:
        """Put the spend on disk; return the secret that seeds the release, and epsilon so far."""
        if spend is None and self.secret_seed is not None:
            return self.secret_seed, None
        ledger = Ledger(self.ledger_path, self.client, epoch=self.data_epoch)
        try:
            secret = ledger.secret() if self.secret_seed is None else self.secret_seed
            if spend is None:
                return secret, None
            terms = request.privacy
            # the whole node is what unit "client" protects, so it has one epoch for ever
            ledger.hold([self.client] if terms.unit == "client" else self.data.users)
            # drawn by chance, one entry is for all rounds
            purpose = Purpose(request.run, request.round if terms.cohort_rate == 1 else 0, request.strategy)
            accountant = functools.partial(epsilon_within, terms.epsilon)
            state = ledger.charge(release, spend, terms.epsilon, accountant, purpose=purpose)
        finally:
            ledger.close()
        return secret, lowest_epsilon(state.spend)

    @staticmethod
    def _plan(request: TrainRequest, own_sigma: float, seed: int) -> TrainPlan:
        goal, terms = request.objective, request.privacy
        return TrainPlan(
            trained=request.trained,
            unit=terms.unit,
            sample_rate=terms.sample_rate,
            local_steps=goal.local_steps,
            noise_multiplier=0.0 if terms.unit == "client" else own_sigma,
            clip=goal.clip,
            window=goal.window,
            negatives=goal.negatives,
            temperature=goal.temperature,
            learning_rate=goal.learning_rate,
            seed=seed,
            undivided=terms.undivided,
            anchor=goal.anchor,
            replay=goal.replay,
        )


def _own_noise(request: TrainRequest, secret_sum: SecretSum | None) -> float:
    """Return how much of the noise this node adds, as a part of one noise's standard deviation."""
    noise = request.privacy.noise
    if noise == "local":
        return 1.0
    if noise == "server":
        return 0.0
    if secret_sum is None:
        raise InvalidSetting(
            "noise 'shared' in a round whose updates are seen one by one",
            expected="secure aggregation: a share of the noise hides nothing by itself",
            consequence="the node does not train",
            mend="use --secure-aggregation, or --noise local",
        )
    return float(1.0 / np.sqrt(secret_sum.noisers))


def _charged_as(release: str, request: TrainRequest, sigma: float) -> str:
    """Return the name to charge under: the release's own, or one for the run when all its rounds cost at once."""
    terms = request.privacy
    if terms.cohort_rate == 1:
        return release
    return f"{request.run}/all {request.planned_steps} rounds at {sigma!r}, {terms.cohort_rate!r}"


def _released(trained: Trained, request: TrainRequest, own_sigma: float, seed: int) -> Mapping[str, np.ndarray]:
    """Return the arrays that leave: a whole update as unit is clipped and noised here, records were in training."""
    if request.privacy.unit != "client":
        return trained.arrays
    clip = request.objective.clip
    return add_noise(clip_whole(trained.arrays, clip), own_sigma * clip, seed)
