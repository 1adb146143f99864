"""A peer: pfl-research's simulated backend (Granqvist et al., 2024, arXiv 2404.06430) with a step of nothing.

It goes through the users in this process, without apps or messages: for each one it draws a dataset, runs the step, the
postprocessors, and adds the statistics up. `pip install pfl` brings it.
"""

import time
from collections.abc import Mapping

import numpy as np
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import FederatedAlgorithm
from pfl.common_types import Population
from pfl.context import CentralContext
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.internal.ops.numpy_ops import NumpySeedScope
from pfl.metrics import Metrics
from pfl.stats import MappedVectorStatistics


class Zeros(FederatedAlgorithm):
    """Answers with zeros of some shapes."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self._shapes = dict(shapes)

    def simulate_one_user(
        self, model: object, user_dataset: Dataset, central_context: CentralContext
    ) -> tuple[MappedVectorStatistics, Metrics]:
        """Return the statistics of one user."""
        found = {name: np.zeros(shape, np.float32) for name, shape in self._shapes.items()}
        return MappedVectorStatistics(found, weight=1.0), Metrics()

    def get_next_central_contexts(
        self, *given: object, **more: object
    ) -> tuple[object, tuple[CentralContext, ...], Metrics]:
        """Refuse: rounds are asked for one by one here."""
        raise NotImplementedError  # pfl's base class wants the method; nothing here calls it

    def process_aggregated_statistics(self, *given: object, **more: object) -> tuple[object, Metrics]:
        """Refuse: a round ends with the sum here, which no model takes up."""
        raise NotImplementedError  # pfl's base class wants the method; nothing here calls it


class PflRounds:
    """Rounds of so many users, the samplers made once."""

    def __init__(self, clients: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        users = list(range(clients))
        with NumpySeedScope(0):
            data = FederatedDataset(
                lambda user: Dataset([np.zeros(1, np.float32)], user_id=str(user)),
                get_user_sampler("minimize_reuse", users),
            )
            self._backend = SimulatedBackend(data, data)
        self._context = CentralContext(0, False, clients, Population.TRAIN, None, None)
        self._algorithm = Zeros(shapes)

    def __call__(self) -> float:
        """Return the seconds of one round."""
        began = time.perf_counter()
        statistics, _ = self._backend.gather_results(
            model=None, training_algorithm=self._algorithm, central_context=self._context
        )
        seconds = time.perf_counter() - began
        assert statistics is not None
        return seconds
