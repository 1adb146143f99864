"""The one place that builds BERT with LoRA adapters.

A text passes the frozen lower layers once (`lower`, cached by `common.encoder.cache`) and the upper layers, which
carry the adapter, every time (`upper`). Mean pooling over the tokens, unit length.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from common.encoder.device import resolve_device
from common.encoder.lora import check_adapter
from common.encoder.pretrained import load_bert
from common.encoder.spec import EncoderSpec
from common.encoder.texts import encode_by_length, mean_of_tokens, tokenize
from common.errors import EncoderError, InvalidSetting
from common.ranks import rank_axis, ranks_of


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
        check_adapter(
            {name: array.shape for name, array in arrays.items()},
            {name: tuple(tensor.shape) for name, tensor in current.items()},
        )
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
        return tokenize(self.tokenizer, texts, self.max_tokens)

    def lower(self, token_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run embeddings and frozen layers: int64 [n, l] and bool [n, l] to float32 [n, l, h]."""
        hidden = self.bert.embeddings(input_ids=token_ids)
        return self._through(self.bert.encoder.layer[: self.first_trained], hidden, mask)

    def upper(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run the adapted layers and pool: float32 [n, l, h] and bool [n, l] to unit rows, float32 [n, h]."""
        hidden = self._through(self.bert.encoder.layer[self.first_trained :], hidden, mask)
        return mean_of_tokens(hidden, mask)

    def _through(self, layers: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device)
        bias = bias.masked_fill(~mask, torch.finfo(hidden.dtype).min)[:, None, None, :]
        for layer in layers:
            hidden = layer(hidden, bias)
        return hidden

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts with the current adapter: float32 [n, h], unit rows, the whole way without a cache."""
        return encode_by_length(
            self.tokenize(texts), self.device, self.dimension, lambda ids, mask: self.upper(self.lower(ids, mask), mask)
        )


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
