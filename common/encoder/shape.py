"""What a BERT is made of: its numbers, and the names and shapes of its tensors in the library's files."""

from collections.abc import Mapping

import msgspec

QKV, ATTENDED, GROWN, SHRUNK = "attention.self", "attention.output.dense", "intermediate.dense", "output.dense"
MATRICES: Mapping[str, tuple[str, ...]] = {
    QKV: ("attention.self.query", "attention.self.key", "attention.self.value"),
    ATTENDED: (ATTENDED,),
    GROWN: (GROWN,),
    SHRUNK: (SHRUNK,),
}
"""The products of a layer, and the library's matrices that each is the stack of."""
ADAPTABLE = (QKV, ATTENDED, SHRUNK)
"""Those that an adapter can add to; the other one ends in its activation."""
ATTENDED_NORM, SHRUNK_NORM = "attention.output.LayerNorm", "output.LayerNorm"


class BertShape(msgspec.Struct, frozen=True):
    """What of config.json decides the forward pass, with the library's defaults."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    model_type: str = ""
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"
    is_decoder: bool = False
    add_cross_attention: bool = False
    quantization_config: object = None

    @property
    def is_plain(self) -> bool:
        """Tell whether `PlainBert` computes what the library would."""
        usual = (self.model_type, self.hidden_act, self.position_embedding_type) == ("bert", "gelu", "absolute")
        more = self.is_decoder or self.add_cross_attention or self.quantization_config
        return usual and not more and self.hidden_size % self.num_attention_heads == 0

    def matrix(self, part: str) -> tuple[int, int]:
        """Return (out, in) of a layer's matrix, by the library's name within the layer."""
        out = self.intermediate_size if part == GROWN else self.hidden_size
        return out, self.intermediate_size if part == SHRUNK else self.hidden_size

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that is read, by the library's name."""
        width = (self.hidden_size,)
        found: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, *width),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, *width),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, *width),
        }
        norms = ["embeddings.LayerNorm"]
        for number in range(self.num_hidden_layers):
            norms += [f"{layer_name(number)}.{norm}" for norm in (ATTENDED_NORM, SHRUNK_NORM)]
            for part in (part for parts in MATRICES.values() for part in parts):
                name, shape = f"{layer_name(number)}.{part}", self.matrix(part)
                found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        return found | {f"{norm}.{leaf}": width for norm in norms for leaf in ("weight", "bias")}


def layer_name(number: int) -> str:
    """Return the library's name of a layer."""
    return f"encoder.layer.{number}"
