"""The one place that builds BERT with LoRA adapters.

A text passes the frozen lower layers once (`lower`, cached by `common.encoder.cache`) and the upper layers, which
carry the adapter, every time (`upper`). Mean pooling over the tokens, unit length.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from common.encoder.device import Batches
from common.encoder.pretrained import load_bert
from common.encoder.spec import EncoderSpec
from common.errors import EncoderError, InvalidSetting, UnknownName
from common.ranks import rank_axis, ranks_of

DEVICES = ("auto", "cpu", "cuda", "mps")
ENCODE_BATCH, GPU_ENCODE_BATCH = 128, 1024
"""Texts a forward pass: few, so that a batch of similar lengths pads little; a GPU would wait for more of them."""


def resolve_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "mps" into a device; auto takes a GPU where there is one.

    Raises
    ------
    UnknownName
        Another name.
    InvalidSetting
        A device that this machine lacks.
    """
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise UnknownName("device", name, list(DEVICES))
    has = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not has[kind]:
        raise InvalidSetting(
            f"device {name!r} is not here", expected="a device that torch sees", mend="use --device auto"
        )
    if kind == "auto":
        name = "cuda" if has["cuda"] else "mps" if has["mps"] else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        # read by cuBLAS when it starts: it then multiplies alike each time (`common.encoder.device.repeatable`)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device


def text_batches(device: torch.device) -> Batches:
    """Return what cuts texts to encode into forward passes."""
    return Batches(GPU_ENCODE_BATCH if device.type == "cuda" else ENCODE_BATCH, "texts to encode")


class TextEncoder(nn.Module):
    """BERT with a LoRA adapter on its top layers.

    Parameters
    ----------
    spec
        Which BERT, which adapter.
    device
        Where it runs; the model is moved before the adapter is attached (Opacus loses its hooks otherwise).
    """

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.device = device
        base, self.tokenizer = load_bert(spec.path)
        base = base.to(device).eval()
        layers = base.config.num_hidden_layers
        self.max_tokens = min(spec.max_tokens, int(base.config.max_position_embeddings))
        self.first_trained = layers - spec.trained_layers
        self.lora_config = LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha,
            target_modules=list(spec.targets),
            layers_to_transform=list(range(self.first_trained, layers)),
            lora_dropout=0.0,
            bias="none",
        )
        with warnings.catch_warnings():
            # PEFT asks transformers by the old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            self.peft = get_peft_model(base, self.lora_config)
        # PEFT filled in this machine's folder; the name is what others can find. It would look the name up on the hub,
        # so each reading of the state below says that no embedding layer belongs to it
        self.lora_config.base_model_name_or_path = spec.name
        self.bert = base
        self.dimension = int(base.config.hidden_size)
        self._sha256: str | None = None

    @classmethod
    def load(cls, spec: EncoderSpec, device: str = "cpu") -> "TextEncoder":
        """Build the encoder on a device given by name."""
        return cls(spec, resolve_device(device))

    @property
    def sha256(self) -> str:
        """SHA-256 of the base weights."""
        if self._sha256 is None:
            self._sha256 = self.spec.weights_sha256()
        return self._sha256

    # -- the adapter ---------------------------------------------------------------------------------------------

    def adapter(self) -> dict[str, np.ndarray]:
        """Return the adapter's tensors, float32, named as in PEFT's file."""
        state = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        return {name: tensor.detach().to("cpu", torch.float32).numpy().copy() for name, tensor in sorted(state.items())}

    def set_adapter(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Load an adapter in place.

        Raises
        ------
        EncoderError
            When a tensor is missing, unknown, or of another shape, naming it.
        """
        current = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        if current.keys() != arrays.keys():
            odd = sorted(current.keys() ^ arrays.keys())[0]
            raise EncoderError(f"tensor {odd!r} is in only one of model and adapter", expected="the same tensors")
        for name, array in arrays.items():
            if tuple(current[name].shape) != array.shape:
                raise EncoderError(f"tensor {name!r} has shape {array.shape}", expected=f"{tuple(current[name].shape)}")
        set_peft_model_state_dict(self.peft, {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()})

    def hold(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Load an adapter of this or a smaller rank in place; errors as for `set_adapter`."""
        self.set_rank(min(ranks_of({name: array.shape for name, array in arrays.items()}), default=self.spec.rank))
        self.set_adapter(arrays)

    def set_rank(self, rank: int) -> None:
        """Give the adapter another rank, up to the spec's, its scale unchanged; what it held is lost.

        Raises
        ------
        InvalidSetting
            When it has no such rank.
        """
        if not 1 <= rank <= self.spec.rank:
            raise InvalidSetting(f"rank {rank}", expected=f"1 to {self.spec.rank}, the rank of the encoder's adapter")
        for name, module in self.peft.named_modules():
            axis = rank_axis(name) if isinstance(module, nn.Linear) else None
            if axis is not None and module.weight.shape[axis] != rank:
                shape = list(module.weight.shape)
                shape[axis] = rank
                module.weight = nn.Parameter(torch.zeros(shape, device=self.device))

    def trainable(self, names: Sequence[str]) -> dict[str, nn.Parameter]:
        """Make exactly the named adapter tensors trainable and return their parameters, in the order of the names.

        Only modules that hold a trained tensor are put into training mode: Opacus records there alone, and the frozen
        dropout stays off.
        """
        wanted = set(names)
        found: dict[str, nn.Parameter] = {}
        self.eval()
        for module_name, module in self.peft.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                stored = f"{module_name}.{leaf}".replace(".default", "")
                parameter.requires_grad_(stored in wanted)
                if stored in wanted:
                    found[stored] = parameter
                    module.train()
        if missing := wanted - found.keys():
            raise EncoderError(f"no tensor {min(missing)!r} in the adapter", expected="names of PEFT's file")
        return {name: found[name] for name in sorted(found)}

    # -- text to vectors -----------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids for each text, cut to `max_tokens`; an empty text still has its two markers."""
        cut = [text[: 16 * self.max_tokens] for text in texts]  # a token is hardly ever 16 characters
        encoded = self.tokenizer(cut, truncation=True, max_length=self.max_tokens, add_special_tokens=True)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def lower(self, token_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run embeddings and frozen layers: int64 [n, l] and bool [n, l] to float32 [n, l, h]."""
        hidden = self.bert.embeddings(input_ids=token_ids)
        return self._through(self.bert.encoder.layer[: self.first_trained], hidden, mask)

    def upper(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run the adapted layers and pool: float32 [n, l, h] and bool [n, l] to unit rows, float32 [n, h]."""
        hidden = self._through(self.bert.encoder.layer[self.first_trained :], hidden, mask)
        weights = mask.to(hidden.dtype).unsqueeze(-1)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1.0)
        return nn.functional.normalize(pooled, dim=-1)

    def _through(self, layers: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device)
        bias = bias.masked_fill(~mask, torch.finfo(hidden.dtype).min)[:, None, None, :]
        for layer in layers:
            hidden = layer(hidden, bias)
        return hidden

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts with the current adapter: float32 [n, h], unit rows, the whole way without a cache."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        token_ids = self.tokenize(texts) if texts else []
        order = sorted(range(len(texts)), key=lambda i: len(token_ids[i]))

        def encoded(batch: slice) -> tuple[list[int], np.ndarray]:
            rows = order[batch]
            ids, mask = pad_tokens([token_ids[i] for i in rows], self.device)
            return rows, self.upper(self.lower(ids, mask), mask).float().cpu().numpy()

        for rows, found in text_batches(self.device).over(len(order), encoded):
            vectors[rows] = found
        return vectors


def pad_tokens(token_ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad to the longest of the batch: int64 [n, l] ids (0 where padded) and a bool [n, l] mask."""
    lengths = np.array([len(ids) for ids in token_ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.fromiter(chain.from_iterable(token_ids), np.int64, int(lengths.sum()))
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def initial_adapter(names_and_shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Return the round-0 adapter: every A with orthonormal rows (as FedSVD keeps it), every B zero.

    The same seed gives the same adapter everywhere; it does not depend on torch's generator.
    """
    from common.ids import rng_for

    arrays: dict[str, np.ndarray] = {}
    for name, shape in sorted(names_and_shapes.items()):
        if "lora_A" in name:
            gaussian = rng_for("initial-adapter", seed, name).standard_normal((shape[1], shape[0]))
            orthonormal, triangle = np.linalg.qr(gaussian)
            arrays[name] = np.ascontiguousarray((orthonormal * np.sign(np.diag(triangle))).T, dtype=np.float32)
        else:
            arrays[name] = np.zeros(shape, dtype=np.float32)
    return arrays
