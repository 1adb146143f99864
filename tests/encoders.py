"""A BERT small enough to be made on the spot: random weights, real classes, real files."""

from pathlib import Path

WORDS = (
    "a about and at brave by city comedy cold dark day drama end fast film for from garden ghost girl gold green hero "
    "house in island king last life light little lost love man moon music night of old on one part queen red river "
    "road sea secret space star story summer the time to town train tree war water wind winter with woman world year"
).split()
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def save_tiny_bert(folder: Path, *, layers: int = 3, positions: int = 64, seed: int = 0) -> Path:
    """Save a random BERT, 32 wide with two heads, and its word-piece tokenizer; return the folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = list(dict.fromkeys(pieces))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=positions,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
    config.architectures = ["BertModel"]
    config.save_pretrained(folder)
    save_file(
        model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"}
    )  # `save_pretrained` draws a bar
    BertTokenizerFast(vocab={piece: row for row, piece in enumerate(vocabulary)}).save_pretrained(folder)
    return folder
