"""What a store was made for: store.json and the catalogue, written once and never changed."""

import hashlib
from dataclasses import asdict, dataclass

import msgspec

from common.errors import ArtifactCorrupt, NoModel, StoreError, StoreMismatch
from common.items import Catalogue, Item
from common.manifests import FORMAT
from server.storage.base import Storage

STORE_NAME = "store.json"
CATALOGUE_NAME = "catalogue.jsonl"


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store was made for; a store never changes it.

    Parameters
    ----------
    encoder
        Name of the base encoder, for `EncoderSpec.from_name`.
    encoder_sha256
        SHA-256 of its weights.
    data
        The data set's name.
    created_at
        Milliseconds since the epoch.
    format
        Layout version.
    program
        Version of the program that made it.
    """

    encoder: str
    encoder_sha256: str
    data: str
    created_at: int
    format: int = FORMAT
    program: str = ""


def write_description(storage: Storage, info: StoreInfo, catalogue: Catalogue) -> None:
    """Make the store; the catalogue first, since a store exists from the moment that store.json does."""
    lines = b"".join(msgspec.json.encode(item) + b"\n" for item in catalogue)
    storage.write(CATALOGUE_NAME, lines)
    described = {**asdict(info), "catalogue_sha256": hashlib.sha256(lines).hexdigest()}
    storage.write(STORE_NAME, msgspec.json.format(msgspec.json.encode(described), indent=2) + b"\n")


def read_description(storage: Storage) -> tuple[StoreInfo, Catalogue]:
    """Return what the store was made for, and its items in the order of all item arrays.

    Raises
    ------
    NoModel
        When there is no store.
    StoreMismatch
        When it has another format.
    ArtifactCorrupt
        When store.json or the catalogue is damaged.
    """
    info, catalogue_sha256 = _read_info(storage)
    return info, _read_catalogue(storage, catalogue_sha256)


def refuse_difference(address: str, existing: tuple[StoreInfo, Catalogue], wanted: tuple[StoreInfo, Catalogue]) -> None:
    """Refuse a store that was made for something else; when and by which program does not matter.

    Raises
    ------
    StoreMismatch
        Naming the first difference.
    """
    (info, catalogue), (wanted_info, wanted_catalogue) = existing, wanted
    found, asked = asdict(info), asdict(wanted_info)
    pairs = [(name, found[name], asked[name]) for name in ("data", "encoder", "encoder_sha256", "format")]
    pairs.append(("number of items", len(catalogue), len(wanted_catalogue)))
    pairs += [
        (
            f"item {position}",
            old.item_id,
            f"{new.item_id} with other content" if old.item_id == new.item_id else new.item_id,
        )
        for position, (old, new) in enumerate(zip(catalogue, wanted_catalogue, strict=False))
        if _stored_form(old) != _stored_form(new)
    ]
    for name, old, new in pairs:
        if old != new:
            raise StoreMismatch(
                f"the store {address} was made for {name} {old!r}",
                expected=f"{name} {new!r}",
                consequence="nothing was changed",
                mend="give another --store, or the settings that it was made with",
            )


def _read_info(storage: Storage) -> tuple[StoreInfo, str]:
    path = f"{storage.address}/{STORE_NAME}"
    try:
        raw = storage.read(STORE_NAME)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoModel(
            f"{storage.address} is no model store",
            expected=f"a folder with {STORE_NAME}",
            mend=f"anabranch demo, or anabranch simulate --store {storage.address}, makes one",
        ) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", mend="check the folder's permissions") from error
    try:
        found = msgspec.json.decode(raw, type=dict[str, object])
        if found.get("format") != FORMAT:
            raise StoreMismatch(
                f"{storage.address} has store format {found.get('format')!r}",
                expected=f"format {FORMAT}",
                mend="use the program version that made it, or another --store",
            )
        return msgspec.convert(found, StoreInfo), msgspec.convert(found.get("catalogue_sha256"), str)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(f"{path} does not describe a store: {error}", mend="restore it from a copy") from error


def _read_catalogue(storage: Storage, expected_sha256: str) -> Catalogue:
    path = f"{storage.address}/{CATALOGUE_NAME}"
    try:
        raw = storage.read(CATALOGUE_NAME)
    except OSError as error:
        raise ArtifactCorrupt(f"{path} cannot be read: {error.strerror}", mend="restore it from a copy") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != expected_sha256:
        raise ArtifactCorrupt(f"{path} has SHA-256 {found}", expected=expected_sha256, mend="restore it from a copy")
    decoder = msgspec.json.Decoder(Item)
    try:
        return Catalogue(decoder.decode(line) for line in raw.split(b"\n") if line)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ArtifactCorrupt(f"{path} is not a catalogue: {error}", mend="restore it from a copy") from error


def _stored_form(item: Item) -> bytes:
    # a NaN or a tuple is what it becomes in JSON
    return msgspec.json.encode(item, order="sorted")
