"""No claim: what a GPU does beside the processor of its machine, for the default encoder and one of BERT-base's size.

- *Steps*: what a client does in a round, `train()` whole: private steps a second, with noise and one gradient a record.
  On the GPU the forward pass is in bfloat16 and the hidden states lie there; beside it the same without the order of
  sums that makes a seed repeat (`repeatable`).
- *Items*: `encode_items()`, as a version does for the whole catalogue. Hidden states are random numbers, as many tokens
  a text as texts have: their values do not change the time. The processor encodes a part of them.
- *Lower layers*: building the cache, once a catalogue.
- *Aggregation*: 1,000 adapters become one (`fedsvd`), and by the `median`, which compares them all.

BERT-base's weights are drawn at random, twelve layers of 768, with the default encoder's tokenizer. The processor uses
all threads that torch takes. Without a GPU the exit code is 3: the processor is measured alone, and nothing is written.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from _record import write_result
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertConfig, BertModel

from client import train as training
from client.dataset import NodeData
from client.train import TrainPlan, train
from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.cache import HiddenCache, encode_items, open_or_build
from common.encoder.device import resolve_device
from common.encoder.spec import EncoderSpec
from common.instructions import Objective
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate import aggregate_arrays, strategy_named
from server.aggregate.base import RowAdam

NO_GPU = 3
WHOLE = {"users": 200, "texts": 2_000, "items": 100_000, "adapters": 1_000, "gpu_steps": 60, "cpu_steps": 3}
QUICK = {"users": 30, "texts": 100, "items": 300, "adapters": 20, "gpu_steps": 2, "cpu_steps": 1}
CPU_SHARE = {"items": 0.02, "texts": 0.1}
"""Of what the GPU does, what the processor does: its figures are rates."""
Sizes = dict[str, int]


def save_bert_base(folder: Path) -> Path:
    """Save a BERT of BERT-base's shape, its weights random, with the default encoder's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(EncoderSpec.default().path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=len(tokenizer)), add_pooling_layer=False)
    model.config.architectures = ["BertModel"]
    model.config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


class Clock:
    """Seconds and peak memory of work on a device; both wait for it to be done."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"

    def time(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return (seconds, peak of allocated GPU memory in MB, 0 on a processor)."""
        if self._gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        work()
        if self._gpu:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 1e6 if self._gpu else 0.0
        return time.perf_counter() - began, peak


class Side:
    """One encoder on one device, and each of the measurements."""

    def __init__(self, spec: EncoderSpec, device: str, sizes: Sizes, folder: Path) -> None:
        self.encoder = TextEncoder.load(spec, device)
        self.gpu = self.encoder.device.type == "cuda"
        self.clock, self.sizes, self.folder = Clock(self.encoder.device), sizes, folder
        self.dataset = make_synthetic(
            SyntheticSpec(users=sizes["users"], items=sizes["texts"], events=40 * sizes["users"]), seed=0
        )
        shapes = {name: array.shape for name, array in self.encoder.adapter().items()}
        self.base = initial_adapter(shapes, 0)

    def part(self, what: str) -> int:
        """Return how many this side does."""
        return self.sizes[what] if self.gpu else max(1, int(self.sizes[what] * CPU_SHARE[what]))

    def lower(self) -> dict[str, float]:
        """Run the frozen layers over texts, each time as if for the first time."""
        texts = (self.dataset.catalogue.texts * (1 + 10 * self.gpu))[: 10 * self.part("texts")]
        open_or_build(self.folder / "warm", self.encoder, texts[:64])
        seconds, peak = self.clock.time(lambda: open_or_build(self.folder / "timed", self.encoder, texts))
        return {"texts": len(texts), "texts_a_second": round(len(texts) / seconds, 1), "peak_mb": round(peak, 1)}

    def steps(self, repeat: bool = True) -> dict[str, float]:
        """Take private steps of a client."""
        data = NodeData.from_interactions(self.dataset.interactions, self.dataset.catalogue)
        cache = open_or_build(self.folder / "steps", self.encoder, self.dataset.catalogue.texts)
        goal, count = Objective(), self.sizes["gpu_steps" if self.gpu else "cpu_steps"]
        trained = tuple(name for name in self.base if "lora_B" in name)

        def run(steps: int) -> None:
            plan = TrainPlan(
                trained, "user", 0.3, steps, 1.0, goal.clip, goal.window, goal.negatives, goal.temperature, 0.1, 0
            )
            train(plan, self.base, data, self.encoder, cache)

        with contextlib.nullcontext() if repeat else unordered_sums():
            run(2 if self.gpu else 1)
            seconds, peak = self.clock.time(lambda: run(count))
        return {
            "steps": count,
            "records_a_step": 0.3 * len(data.histories),
            "steps_a_second": round(count / seconds, 2),
            "peak_mb": round(peak, 1),
        }

    def items(self) -> dict[str, float]:
        """Encode the items of a version from hidden states that are random numbers."""
        lengths = [len(ids) for ids in self.encoder.tokenize(self.dataset.catalogue.texts)]
        count = self.part("items")
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(np.resize(lengths, count))]))
        device = self.encoder.device
        hidden = torch.randn((int(starts[-1]), self.encoder.dimension), device=device)
        cache = HiddenCache(hidden, starts.to(device))
        self.encoder.set_adapter(self.base)
        encode_items(
            self.encoder, HiddenCache(hidden[: int(starts[count // 10])], starts[: count // 10 + 1].to(device))
        )
        seconds, peak = self.clock.time(lambda: encode_items(self.encoder, cache))
        return {
            "texts": count,
            "tokens_a_text": round(float(np.mean(lengths)), 1),
            "texts_a_second": round(count / seconds, 1),
            "peak_mb": round(peak, 1),
        }

    def aggregation(self, name: str) -> dict[str, float]:
        """Make one adapter of many."""
        strategy = strategy_named(name, RowAdam())
        rng = np.random.default_rng(0)
        trained = strategy.trained(self.base)
        updates = [
            AdapterUpdate(
                UpdateMeta(str(number), "base", name, 1, 1.0),
                {each: rng.standard_normal(self.base[each].shape, dtype=np.float32) for each in trained},
            )
            for number in range(self.sizes["adapters"])
        ]
        device = self.encoder.device.type
        aggregate_arrays(strategy, self.base, {}, updates[:3], device)
        times = [
            self.clock.time(lambda: aggregate_arrays(strategy, self.base, {}, updates, device))
            for _ in range(3 if name == "fedsvd" else 1)
        ]
        seconds = float(np.median([each for each, _ in times]))
        return {"adapters": len(updates), "seconds": round(seconds, 4), "peak_mb": round(max(p for _, p in times), 1)}

    def all(self) -> dict[str, dict[str, float]]:
        """Return every figure, by name."""
        rows = {"lower layers": self.lower(), "steps": self.steps(), "items": self.items()}
        if self.gpu:
            rows["steps, sums in any order"] = self.steps(repeat=False)
        return rows | {f"aggregation, {name}": self.aggregation(name) for name in ("fedsvd", "median")}


@contextlib.contextmanager
def unordered_sums() -> Iterator[None]:
    """Train without the order of sums that makes a seed repeat."""
    kept = training.repeatable
    training.repeatable = lambda device: contextlib.nullcontext()
    try:
        yield
    finally:
        training.repeatable = kept


def measure(name: str, spec: EncoderSpec, device: str, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Return the figures of one encoder on one device."""
    with tempfile.TemporaryDirectory() as folder:
        found = Side(spec, device, sizes, Path(folder)).all()
    for what, row in found.items():
        print(f"{name}, {device}, {what}: {row}", flush=True)
    return found


def ratios(processor: dict[str, dict[str, float]], gpu: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return how many times the GPU does what the processor does in the same time; below 1 it is slower."""
    found = {}
    for name in processor.keys() & gpu.keys():
        key = next(key for key in gpu[name] if key.endswith("_a_second") or key == "seconds")
        here, there = processor[name][key], gpu[name][key]
        found[name] = round(here / there if key == "seconds" else there / here, 2)
    return dict(sorted(found.items()))


def described(device: torch.device) -> dict[str, object] | None:
    """Return which GPU it is; None for none."""
    if device.type != "cuda":
        return None
    facts = torch.cuda.get_device_properties(device)
    return {"name": facts.name, "memory_gb": round(facts.total_memory / 1e9, 1), "cuda": torch.version.cuda}


def main() -> int:
    """Measure, write, and print one line an encoder; 3 where there is no GPU."""
    told = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    told.add_argument("--device", default="auto", help="auto, cpu or cuda")
    told.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; writes nothing")
    told.add_argument("--note", default="", help="a word for the result file")
    asked = told.parse_args()
    device = resolve_device(asked.device)
    sizes = QUICK if asked.quick else WHOLE
    rows: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = save_bert_base(Path(folder))
        encoders = {"MiniLM": EncoderSpec.default(), "BERT-base's size": EncoderSpec.from_name(str(base))}
        for name, spec in encoders.items():
            gpu = measure(name, spec, device.type, sizes) if device.type != "cpu" else {}
            processor = measure(name, spec, "cpu", sizes)
            ratio = ratios(processor, gpu) if gpu else {}
            rows[name] = {"gpu": gpu, "processor": processor, "gpu_over_processor": ratio}
            print(f"{name}: {ratio or 'no GPU here, the processor alone'}", flush=True)
    figures = {
        "gpu": described(device),
        "torch_threads": torch.get_num_threads(),
        "note": asked.note,
        "rows": rows,
    }
    if device.type != "cuda":
        print("torch sees no CUDA device: nothing is compared or written", file=sys.stderr)
        return NO_GPU
    if not asked.quick:
        print(write_result("gpu", figures, ("torch", "transformers", "opacus", "numpy")).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
