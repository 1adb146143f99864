"""Our aggregation for any Flower project: a thin ``flwr.serverapp.strategy.Strategy`` around a strategy of ours.

Clients get the whole adapter under ``arrays`` and, in the configuration under ``trained``, the names of the tensors to
train; they answer with the new values of those (other tensors in the reply are ignored, so a frozen A costs nothing but
the upload). What differs from Flower's own strategies: every client counts the same, whatever number of examples it
claims; a reply that is an error, incomplete, of another shape or type, not finite or absurdly large is left out and
logged instead of ending the round; the caller's configuration is not written into.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from common.errors import UpdateRejected
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate import Strategy, aggregate_arrays
from server.aggregate.layout import cut
from server.validate import MAX_NORM

log = logging.getLogger(__name__)

MetricsOf = Callable[[list[RecordDict], str], MetricRecord]


class FlowerStrategy(FedAvg):
    """One of our strategies behind Flower's interface; nodes are sampled, and messages laid out, as by FedAvg.

    The strategy's state lives in `state` between rounds. Save it with the arrays: a run that starts again without it
    forgets the optimiser's moments, and FedEx its residual.

    Parameters
    ----------
    strategy
        For example ``strategy_named("fedsvd", PlainStep())``.
    state
        As `state` was when an earlier run ended; empty for a new one.
    ranks
        Node id to the rank it can hold, for nodes that hold less than the whole adapter; not for robust rules.
    device
        Where to aggregate, in torch's words.
    fraction_train, fraction_evaluate, arrayrecord_key, configrecord_key
        As FedAvg's.
    min_nodes
        As FedAvg's three minima; it waits until so many are connected.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        As FedAvg's; by default the plain mean over clients.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        state: Mapping[str, np.ndarray] | None = None,
        ranks: Mapping[int, int] | None = None,
        device: str = "cpu",
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_nodes: int = 1,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsOf | None = None,
        evaluate_metrics_aggr_fn: MetricsOf | None = None,
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_nodes,
            min_evaluate_nodes=min_nodes,
            min_available_nodes=min_nodes,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn or mean_metrics,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn or mean_metrics,
        )
        self.strategy, self.device, self.ranks = strategy, device, dict(ranks or {})
        self.state: dict[str, np.ndarray] = dict(state or {})
        self._base: dict[str, np.ndarray] = {}

    def summary(self) -> None:
        """Log which strategy it is, and FedAvg's settings."""
        log.info("strategy %s on %s, %d nodes of a smaller rank", self.strategy.name, self.device, len(self.ranks))
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask a sample of the nodes to train what this round trains, each with the rank it can hold."""
        self._base = {name: np.asarray(array.numpy()) for name, array in arrays.items()}
        asked = ConfigRecord({**config, "trained": list(self.strategy.trained(self._base, self.state))})
        messages = super().configure_train(server_round, arrays, asked, grid)
        return [self._narrowed(message) for message in messages]

    def _narrowed(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node not in self.ranks:
            return message
        content = RecordDict(
            {
                self.arrayrecord_key: _record(cut(self._base, self.ranks[node])),
                self.configrecord_key: message.content[self.configrecord_key],
            }
        )
        return Message(content, node, message.metadata.message_type)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the usable replies, in the order of the node ids, into the adapter; (None, None) without any."""
        usable: list[RecordDict] = []
        updates = self._updates(server_round, replies, usable)
        adapter, state, clients = aggregate_arrays(self.strategy, self._base, self.state, updates, self.device)
        if not clients:
            return None, None
        self.state = state
        return _record(adapter), self.train_metrics_aggr_fn(usable, self.weighted_by_key)

    def _updates(
        self, server_round: int, replies: Iterable[Message], usable: list[RecordDict]
    ) -> Iterator[AdapterUpdate]:
        """Yield the usable updates, and put the contents of their replies into `usable`."""
        trained = self.strategy.trained(self._base, self.state)
        heard: set[int] = set()
        for reply in sorted(replies, key=lambda message: message.metadata.src_node_id):
            node = reply.metadata.src_node_id
            try:
                if reply.has_error():
                    raise UpdateRejected(reply.error.reason or f"error {reply.error.code}", expected="an update")
                if node in heard:
                    raise UpdateRejected("a second reply", expected="one a round")
                base = cut(self._base, self.ranks[node]) if node in self.ranks else self._base
                arrays = changes_of(reply.content, base, trained)
            except UpdateRejected as error:
                log.warning("round %d, node %d is left out: %s", server_round, node, error)
                continue
            heard.add(node)
            usable.append(reply.content)
            yield AdapterUpdate(UpdateMeta(str(node), "", self.strategy.name, server_round, 1.0), arrays)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics of the replies that are no errors."""
        usable = [reply.content for reply in replies if not reply.has_error()]
        return self.evaluate_metrics_aggr_fn(usable, self.weighted_by_key) if usable else None


def changes_of(content: RecordDict, base: Mapping[str, np.ndarray], trained: Iterable[str]) -> dict[str, np.ndarray]:
    """Return by how much a reply's trained tensors differ from the base, float32.

    Raises
    ------
    UpdateRejected
        Naming the first thing that is wrong.
    """
    records = list(content.array_records.values())
    if len(records) != 1:
        raise UpdateRejected(f"a reply with {len(records)} array records", expected="one")
    changes: dict[str, np.ndarray] = {}
    for name in trained:
        if name not in records[0]:
            raise UpdateRejected(f"a reply without tensor {name!r}", expected="every tensor it was asked to train")
        try:
            array = np.asarray(records[0][name].numpy())
        except (TypeError, ValueError, OSError, EOFError) as error:
            raise UpdateRejected(f"tensor {name!r} that cannot be read ({error})", expected="an array") from error
        if array.shape != base[name].shape or not np.issubdtype(array.dtype, np.floating):
            raise UpdateRejected(
                f"tensor {name!r} is {array.dtype} {array.shape}",
                expected=f"floating-point numbers of shape {base[name].shape}",
            )
        with np.errstate(over="ignore", invalid="ignore"):
            change = np.subtract(array, base[name], dtype=np.float32, casting="same_kind").reshape(-1)
            norm = math.sqrt(np.dot(change, change))  # NaN or infinite if an element is
            changes[name] = change.reshape(array.shape)
        if not norm <= MAX_NORM:
            raise UpdateRejected(f"tensor {name!r} moved by {norm:.3g}", expected=f"at most {MAX_NORM:g}")
    return changes


def mean_metrics(records: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the plain mean of every number that all replies report; the weight itself is left out."""
    reports = [dict(report) for record in records for report in record.metric_records.values()]
    shared = set.intersection(*(set(report) for report in reports)) if reports else set()
    means = {}
    for key in sorted(shared - {weighted_by_key}):
        values = [report[key] for report in reports]
        numbers = [float(value) for value in values if not isinstance(value, list)]
        if len(numbers) == len(values):
            means[key] = float(np.mean(numbers))
    return MetricRecord(dict(means))


def _record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord(OrderedDict((name, Array(array)) for name, array in sorted(arrays.items())))
