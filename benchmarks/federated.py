"""Claims: privacy adds at most a tenth to a training step, and the cache saves most of what it can save.

*Privacy*: one gradient a record, clipping and noise (`RecordHooks`, `PrivateStep`) beside plain SGD on the same records
through the same forward and backward passes, without any hook.

*Cache*: a plain step from the cached hidden states beside the same step with all layers run, the lower ones frozen; the
same tensors are trained. Tokens are ready for both. The layers that carry the adapter cost a forward and a backward
pass either way, so there is a ceiling, given as `ceiling`: the multiplications of one over those of the other. A
forward pass alone, as in publishing a version, has a higher one.

*Aggregation* is measured by `aggregate.py`; its figure is judged here with the others.

Costs are processor time, the two sides take turns, and the figure is the median ratio over the turns. The exit code is
1 when a claim does not hold.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aggregate
import numpy as np
import torch
from _record import HERE, write_result

from client.dataset import NodeData, Record
from client.dp import PrivateStep, RecordHooks
from client.train import RECORDS_A_PASS, losses_of
from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.cache import HiddenCache, open_or_build
from common.encoder.spec import EncoderSpec
from common.encoder.texts import pad_tokens
from common.instructions import Objective

SPEC = SyntheticSpec(users=200, items=1_500, events=6_000)
TURNS, CLIP, SIGMA = 7, 0.5, 1.0
MOST_PRIVATE, LEAST_CACHE, MOST_AGGREGATION_S = 1.1, 2.5, 0.5
Way = Callable[[], object]


class AllLayers(HiddenCache):
    """A cache in name: it runs the lower layers whenever it is asked."""

    def __init__(self, encoder: TextEncoder, texts: tuple[str, ...]) -> None:
        self._encoder, self._tokens = encoder, encoder.tokenize(texts)
        self.lengths = np.array([len(ids) for ids in self._tokens])

    def batch(self, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather texts by row, as `HiddenCache.batch` does, and run the lower layers."""
        ids, mask = pad_tokens([self._tokens[row] for row in rows], device)
        return self._encoder.lower(ids, mask), mask


class Bench:
    """One step over one pass of records, in each of the ways."""

    def __init__(self, encoder: TextEncoder, cache: HiddenCache, trained: str, records: list[Record]) -> None:
        self.encoder, self.cache, self.records = encoder, cache, records
        shapes = {name: array.shape for name, array in encoder.adapter().items()}
        encoder.set_adapter(initial_adapter(shapes, 0))
        self.parameters = list(encoder.trainable([name for name in shapes if trained in name]).values())

    def forward(self, cache: HiddenCache) -> torch.Tensor:
        """Run the forward pass alone."""
        with torch.no_grad():
            return losses_of(self.records, Objective().temperature, self.encoder, cache)

    def plain(self, cache: HiddenCache) -> None:
        """Take a step of SGD without a hook."""
        optimiser = torch.optim.SGD(self.parameters, lr=1e-6)
        losses_of(self.records, Objective().temperature, self.encoder, cache).mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def private(self) -> None:
        """Take a step with one gradient a record, clipped, and noise."""
        hooks = RecordHooks(self.encoder.peft)
        try:
            step = PrivateStep(
                self.parameters,
                hooks,
                learning_rate=1e-6,
                noise_multiplier=SIGMA,
                clip=CLIP,
                expected_records=len(self.records),
                generator=torch.Generator().manual_seed(0),
            )
            hooks.backward(losses_of(self.records, Objective().temperature, self.encoder, self.cache, hooks))
            step.accumulate()
            step.finish()
        finally:
            hooks.remove_hooks()


def _measure(ways: dict[str, Way]) -> dict[str, np.ndarray]:
    """Return processor seconds of each turn, float64 [turns], by way; the first turn warms up and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS + 1):
        for name, run in ways.items():
            used = time.process_time()
            run()
            times[name].append(time.process_time() - used)
    return {name: np.array(turns[1:]) for name, turns in times.items()}


def _ratio(above: np.ndarray, below: np.ndarray) -> dict[str, float]:
    ratios = above / below
    spread = {"median": np.median(ratios), "least": ratios.min(), "most": ratios.max()}
    return {name: round(float(value), 2) for name, value in spread.items()}


def _ceilings(all_layers: int, trained: int) -> dict[str, float]:
    """Return what the multiplications alone allow.

    In units of one of a layer's four square matrices (the feed-forward part is eight): forward 12 a layer; backward 12
    a trained layer, and 9 the lowest of them, since nothing below its projections asks for a gradient.
    """
    upper, below = 12 * trained, 12 * (all_layers - trained)
    step = upper + 12 * trained - 3
    return {"step": round((below + step) / step, 2), "forward": round((below + upper) / upper, 2)}


def _records(data: NodeData) -> list[Record]:
    goal = Objective()
    return data.population("user", goal.window).draw(1.0, goal.negatives, np.random.default_rng(0))[:RECORDS_A_PASS]


def _rows(encoder: TextEncoder, cache: HiddenCache, whole: HiddenCache, records: list[Record]) -> dict[str, object]:
    """Return the figures of one trained set each: the adapters' B as in `fedsvd`, and both as in `fedit`."""
    rows: dict[str, object] = {}
    for name, part in (("B", "lora_B"), ("A and B", "lora_")):
        bench = Bench(encoder, cache, part, records)
        times = _measure(
            {
                "plain": lambda bench=bench: bench.plain(cache),
                "private": bench.private,
                "all layers": lambda bench=bench: bench.plain(whole),
                "forward": lambda bench=bench: bench.forward(cache),
                "forward, all layers": lambda bench=bench: bench.forward(whole),
            }
        )
        rows[name] = {
            "cpu_s_median": {way: round(float(np.median(turns)), 4) for way, turns in times.items()},
            "private_over_plain": _ratio(times["private"], times["plain"]),
            "all_layers_over_cache": _ratio(times["all layers"], times["plain"]),
            "forward_all_layers_over_cache": _ratio(times["forward, all layers"], times["forward"]),
        }
    return rows


def _step_figures() -> dict[str, object]:
    dataset = make_synthetic(SPEC, seed=0)
    encoder = TextEncoder.load(EncoderSpec.default(), "cpu")
    records = _records(NodeData.from_interactions(dataset.interactions, dataset.catalogue))
    with tempfile.TemporaryDirectory() as folder:
        cache = open_or_build(Path(folder), encoder, dataset.catalogue.texts)
        whole = AllLayers(encoder, dataset.catalogue.texts)
        used = np.concatenate([np.concatenate([each.window, each.negatives]) for each in records])
        return {
            "records": len(records),
            "texts": len(used),
            "tokens_a_text": round(float(cache.lengths[used].mean()), 1),
            "turns": TURNS,
            "clock": "processor time of the process",
            "layers": {
                "all_layers": int(encoder.bert.config.num_hidden_layers),
                "trained": encoder.spec.trained_layers,
            },
            "rows": _rows(encoder, cache, whole, records),
        }


def _verdicts(figures: dict[str, object], aggregation: dict[str, object]) -> dict[str, dict[str, object]]:
    rows, ceiling = figures["rows"], figures["ceiling"]["step"]
    private = max(row["private_over_plain"]["median"] for row in rows.values())
    cache = min(row["all_layers_over_cache"]["median"] for row in rows.values())
    forward = min(row["forward_all_layers_over_cache"]["median"] for row in rows.values())
    summing = aggregation["rows"]["fedsvd"]["wall_s_median"]
    return {
        "private step over plain": {"figure": private, "at_most": MOST_PRIVATE, "holds": private <= MOST_PRIVATE},
        "all layers over cache, step": {
            "figure": cache,
            "at_least": LEAST_CACHE,
            "ceiling": ceiling,
            "holds": cache >= LEAST_CACHE,
        },
        "all layers over cache, forward": {"figure": forward, "at_least": LEAST_CACHE, "holds": forward >= LEAST_CACHE},
        "seconds for 1,000 adapters": {
            "figure": summing,
            "at_most": MOST_AGGREGATION_S,
            "holds": summing <= MOST_AGGREGATION_S,
            "flower_fedavg_over_ours": aggregation["ratio"]["fedsvd"]["median"],
        },
    }


def main() -> int:
    """Measure, write, and print one line a claim; 1 when one does not hold."""
    figures = _step_figures()
    figures["ceiling"] = _ceilings(**figures["layers"])
    aggregate.main()
    aggregation = json.loads((HERE / "results" / "aggregate.json").read_text())
    verdicts = _verdicts(figures, aggregation)
    path = write_result("federated", {**figures, "verdicts": verdicts}, ("torch", "opacus", "peft", "transformers"))
    for claim, verdict in verdicts.items():
        bound = next(f"{word.replace('_', ' ')} {verdict[word]}" for word in ("at_most", "at_least") if word in verdict)
        ceiling = f" (ceiling {verdict['ceiling']})" if "ceiling" in verdict else ""
        print(f"{'holds ' if verdict['holds'] else 'MISSED'} {claim}: {verdict['figure']}, {bound}{ceiling}")
    print(f"figures and spread: {path.name}")
    return 0 if all(verdict["holds"] for verdict in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
