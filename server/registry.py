"""The folder of models: immutable versions, movable names that point at them.

Layout::

    store.json                 what the store was made for
    catalogue.jsonl            the items, one a line, in the order of all item arrays
    versions/<version>/        immutable: files and a manifest with their SHA-256s
    pointers/<name>            one line: the version that the name stands for ("current")

A version is visible only once it is whole (written aside, synced, renamed), and a pointer is replaced in one step. So a
reader, or whoever comes after a crash, finds the old state or the new one.
"""

import errno
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np

from common.errors import ArtifactCorrupt, InvalidSetting, NoModel, StoreError, StoreMismatch, VersionNotFound
from common.items import Catalogue, Item
from common.manifests import FORMAT, Manifest
from common.store import publish_folder, read_manifest, unpack_arrays, verify_folder, write_atomic

STORE_NAME = "store.json"
CATALOGUE_NAME = "catalogue.jsonl"
VERSIONS_FOLDER = "versions"
POINTERS_FOLDER = "pointers"
CURRENT = "current"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHOWN = 10


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


class Registry:
    """One store: its catalogue, its versions, its pointers.

    Made by `Registry.create` or `Registry.open`.

    Parameters
    ----------
    root
        The folder.
    info
        What the store was made for.
    catalogue
        The items in the order of all item arrays.
    """

    def __init__(self, root: Path, info: StoreInfo, catalogue: Catalogue) -> None:
        self.root, self.info, self.catalogue = root, info, catalogue

    @classmethod
    def create(cls, root: Path, info: StoreInfo, catalogue: Catalogue) -> "Registry":
        """Make the store, or open it when it is there already and was made for the same.

        `created_at` and `program` may differ: they say when and by whom, not what for.

        Raises
        ------
        StoreMismatch
            When a store of another encoder, data set or catalogue lies there, naming the difference.
        """
        if (root / STORE_NAME).exists():
            existing = cls.open(root)
            _refuse_difference(existing, info, catalogue)
            return existing
        lines = b"".join(msgspec.json.encode(item) + b"\n" for item in catalogue)
        # the catalogue first: a store exists from the moment that store.json does
        write_atomic(root / CATALOGUE_NAME, lines)
        described = {**asdict(info), "catalogue_sha256": hashlib.sha256(lines).hexdigest()}
        write_atomic(root / STORE_NAME, msgspec.json.format(msgspec.json.encode(described), indent=2) + b"\n")
        return cls(root, info, catalogue)

    @classmethod
    def open(cls, root: Path) -> "Registry":
        """Open an existing store.

        Raises
        ------
        NoModel
            When `root` is no store.
        StoreMismatch
            When it has another format.
        ArtifactCorrupt
            When store.json or the catalogue is damaged.
        """
        info, catalogue_sha256 = _read_info(root)
        return cls(root, info, _read_catalogue(root / CATALOGUE_NAME, catalogue_sha256))

    def publish(self, files: Mapping[str, bytes], manifest: Manifest) -> Manifest:
        """Write `manifest.version` as an immutable folder; no pointer moves.

        Parameters
        ----------
        files
            Relative name ("adapter/adapter_model.safetensors") to content.
        manifest
            Names the version; its `files` are filled in.

        Returns
        -------
        Manifest
            As written.

        Raises
        ------
        StoreMismatch
            When it was made with another base encoder than the store's.
        StoreError
            When the version exists: of two publishers of one version the first wins, whole.
        """
        target = self.root / VERSIONS_FOLDER / _checked_name("version", manifest.version)
        if manifest.base_sha256 != self.info.encoder_sha256:
            raise StoreMismatch(
                f"version {manifest.version!r} was made with encoder {manifest.base_encoder!r} "
                f"(SHA-256 {manifest.base_sha256 or 'not given'})",
                expected=f"{self.info.encoder!r} (SHA-256 {self.info.encoder_sha256})",
                consequence="nothing was written",
                mend="use another --store for another encoder",
            )
        try:
            return publish_folder(target, files, manifest)
        except OSError as error:
            if not isinstance(error, FileExistsError) and error.errno != errno.ENOTEMPTY:
                raise
            raise StoreError(
                f"version {manifest.version!r} of {self.root} exists already",
                expected="a new version name",
                consequence="versions are immutable, so nothing was written",
                mend="stop the other process that publishes to this store",
            ) from error

    def names(self) -> tuple[str, ...]:
        """Return the names of all whole versions, sorted; nothing is read."""
        return tuple(folder.name for folder in self._version_folders())

    def versions(self) -> tuple[Manifest, ...]:
        """Return the manifests of all whole versions, oldest first.

        Raises
        ------
        ArtifactCorrupt
            When a manifest cannot be read.
        """
        manifests = [read_manifest(folder) for folder in self._version_folders()]
        return tuple(sorted(manifests, key=lambda manifest: (manifest.created_at, manifest.version)))

    def manifest(self, version: str) -> Manifest:
        """Return a version's manifest.

        Parameters
        ----------
        version
            A version, or the name of a pointer ("current").

        Raises
        ------
        VersionNotFound
            When there is none, naming those that exist.
        """
        return read_manifest(self.folder(version))

    def folder(self, version: str) -> Path:
        """Return the folder of a version or pointer name; errors as for `manifest`."""
        versions = self.root / VERSIONS_FOLDER
        if _NAME.fullmatch(version):
            if (versions / version).is_dir():
                return versions / version
            target = self.pointer(version)
            if target is not None and _NAME.fullmatch(target) and (versions / target).is_dir():
                return versions / target
        raise VersionNotFound(f"no version {version!r} in {self.root}", expected=self._known())

    def arrays(self, version: str, file: str) -> dict[str, np.ndarray]:
        """Read one safetensors file of a version.

        Raises
        ------
        ArtifactCorrupt
            When it is missing, or its SHA-256 or a tensor is not what the manifest says.
        """
        folder = self.folder(version)
        expected = read_manifest(folder).files.get(file)
        path = folder / file
        if expected is None:
            raise ArtifactCorrupt(f"{path} is not in the manifest", expected=f"a version with {file}")
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise ArtifactCorrupt(
                f"{path} cannot be read: {error.strerror}", mend="roll back to another version"
            ) from error
        found = hashlib.sha256(raw).hexdigest()
        if found != expected:
            raise ArtifactCorrupt(
                f"{path} has SHA-256 {found}",
                expected=expected,
                consequence="the version is not used",
                mend="roll back to another version",
            )
        return unpack_arrays(raw, str(path))

    def pointer(self, name: str) -> str | None:
        """Return the version that the name points at, or None when the name is not set."""
        path = self.root / POINTERS_FOLDER / _checked_name("pointer", name)
        try:
            return path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactCorrupt(f"pointer {path} cannot be read: {error}", mend="anabranch model promote") from error

    def point(self, name: str, version: str) -> None:
        """Let the name stand for the version, in one step.

        Raises
        ------
        VersionNotFound
            When there is no such version; the pointer stays where it was.
        """
        path = self.root / POINTERS_FOLDER / _checked_name("pointer", name)
        if not (_NAME.fullmatch(version) and (self.root / VERSIONS_FOLDER / version).is_dir()):
            raise VersionNotFound(
                f"no version {version!r} in {self.root}",
                expected=self._known(),
                consequence=f"{name!r} stays at {self.pointer(name) or 'nothing'}",
            )
        write_atomic(path, version.encode() + b"\n")

    def current(self) -> Manifest:
        """Return the manifest that `current` points at.

        Raises
        ------
        NoModel
            When nothing was published yet.
        """
        if self.pointer(CURRENT) is None:
            raise NoModel(
                f"{self.root} holds no current model",
                expected="a published version",
                mend=f"anabranch simulate --store {self.root}",
            )
        return self.manifest(CURRENT)

    def verify(self, version: str) -> Manifest:
        """Re-hash every file of a version and return its manifest.

        Raises
        ------
        ArtifactCorrupt
            When a file is missing or differs, naming it.
        """
        return verify_folder(self.folder(version))

    def _version_folders(self) -> Iterator[Path]:
        folder = self.root / VERSIONS_FOLDER
        if folder.is_dir():
            # a name with a leading dot is what a publisher that died left behind
            yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and _NAME.fullmatch(path.name))

    def _known(self) -> str:
        names = self.names()
        if not names:
            return "a published version (there is none yet)"
        more = f"{len(names) - _SHOWN} older ones, " if len(names) > _SHOWN else ""
        return f"one of {more}{', '.join(names[-_SHOWN:])}"


def _checked_name(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidSetting(
            f"{kind} name {name!r}", expected="1 to 100 letters, digits, dots, dashes or underscores, no leading dot"
        )
    return name


def _read_info(root: Path) -> tuple[StoreInfo, str]:
    path = root / STORE_NAME
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoModel(
            f"{root} is no model store",
            expected=f"a folder with {STORE_NAME}",
            mend=f"anabranch demo, or anabranch simulate --store {root}, makes one",
        ) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", mend="check the folder's permissions") from error
    try:
        found = msgspec.json.decode(raw, type=dict[str, object])
        if found.get("format") != FORMAT:
            raise StoreMismatch(
                f"{root} has store format {found.get('format')!r}",
                expected=f"format {FORMAT}",
                mend="use the program version that made it, or another --store",
            )
        return msgspec.convert(found, StoreInfo), msgspec.convert(found.get("catalogue_sha256"), str)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(f"{path} does not describe a store: {error}", mend="restore it from a copy") from error


def _read_catalogue(path: Path, expected_sha256: str) -> Catalogue:
    try:
        raw = path.read_bytes()
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


def _refuse_difference(existing: Registry, info: StoreInfo, catalogue: Catalogue) -> None:
    asked, found = asdict(info), asdict(existing.info)
    pairs = [(name, found[name], asked[name]) for name in ("data", "encoder", "encoder_sha256", "format")]
    pairs.append(("number of items", len(existing.catalogue), len(catalogue)))
    pairs += [
        (
            f"item {position}",
            old.item_id,
            f"{new.item_id} with other content" if old.item_id == new.item_id else new.item_id,
        )
        for position, (old, new) in enumerate(zip(existing.catalogue, catalogue, strict=False))
        if _stored_form(old) != _stored_form(new)
    ]
    for name, old, new in pairs:
        if old != new:
            raise StoreMismatch(
                f"the store {existing.root} was made for {name} {old!r}",
                expected=f"{name} {new!r}",
                consequence="nothing was changed",
                mend="give another --store, or the settings that it was made with",
            )


def _stored_form(item: Item) -> bytes:
    # a NaN or a tuple is what it becomes in JSON
    return msgspec.json.encode(item, order="sorted")
