"""A disk that remembers what was synced, and every content that a power cut could leave behind.

The model: the content of a file is durable once the file is synced, a name (new, renamed or removed) once its folder
is; anything else may be kept or lost, each by itself, and the content of an unsynced file may be kept by half. A rename
within one folder is kept or lost as one. Real file systems promise at least this.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.disk import Content, Disk, parts_of

MOST_SUBSETS = 256
"""Of one moment; with more unsynced names than that allows, all kept, all lost, and each one kept or lost alone."""


Tree = frozenset[tuple[str, bytes | None]]
"""Path to content, None for a folder."""
Fate = tuple[int, ...] | bytes
"""Which of a folder's pending changes are kept, or what is left of a file."""


@dataclass
class Node:
    """A file with its content, or a folder with its names, and what of it is durable."""

    content: bytes | None = None
    durable: bytes = b""
    names: "dict[str, Node]" = field(default_factory=dict)
    pending: "list[dict[str, Node | None]]" = field(default_factory=list)
    kept: "dict[str, Node]" = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return self.content is None

    def change(self, names: "dict[str, Node | None]") -> None:
        """Change names together; not durable yet."""
        self.pending.append(names)
        _apply(self.names, names)

    def sync(self) -> None:
        if self.content is not None:
            self.durable = self.content
        self.kept, self.pending = dict(self.names), []


def _apply(names: dict[str, Node], change: "dict[str, Node | None]") -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class RecordingDisk(Disk):
    """The real disk, which after each operation lists the trees that a power cut could leave; see `trees`.

    Parameters
    ----------
    root
        An existing folder; what is in it now counts as durable.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._top = root, _durable_tree(root)
        self._open = root
        self.trees: set[Tree] = set()
        """Each tree that a power cut could have left at some moment."""
        self.now: set[Tree] = set()
        """Those that it could leave now."""
        self._note()

    def sync(self, handle: int) -> None:
        super().sync(handle)
        self._node(self._open).sync()
        self._note()

    def sync_folder(self, folder: Path) -> None:
        self._open = folder
        super().sync_folder(folder)

    def write(self, path: Path, content: Content) -> None:
        self._node(path.parent).change({path.name: Node(content=b"".join(parts_of(content)))})
        self._open = path
        self._note()
        super().write(path, content)

    def make_folder(self, folder: Path) -> None:
        super().make_folder(folder)
        self._node(folder.parent).change({folder.name: Node()})
        self._note()

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self._renamed(source, target)

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._renamed(source, target)

    def _renamed(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent, "the model knows renames within one folder only"
        self._node(source.parent).change({source.name: None, target.name: self._node(source)})
        self._note()

    def remove(self, path: Path) -> None:
        there = path.exists()
        super().remove(path)
        if there:
            self._node(path.parent).change({path.name: None})
            self._note()

    def remove_tree(self, folder: Path) -> None:
        if not folder.exists():
            return
        # file by file: a power cut may fall between any two
        for path in sorted(folder.rglob("*"), reverse=True):
            self._node(path.parent).change({path.name: None})
            self._note()
        super().remove_tree(folder)
        self._node(folder.parent).change({folder.name: None})
        self._note()

    def _node(self, path: Path) -> Node:
        node = self._top
        for name in path.relative_to(self._root).parts:
            node = node.names[name]
        return node

    def _note(self) -> None:
        self.now = {frozenset(tree.items()) for tree in _left_by_a_cut(self._top)}
        self.trees |= self.now


def _durable_tree(folder: Path) -> Node:
    node = Node()
    for path in folder.iterdir():
        node.names[path.name] = _durable_tree(path) if path.is_dir() else Node(content=path.read_bytes())
    for child in node.names.values():
        child.sync()
    node.sync()
    return node


def _left_by_a_cut(top: Node) -> Iterator[dict[str, bytes | None]]:
    """Yield each tree: for all that is unsynced anywhere, kept or lost."""
    loose = list(_loose(top))
    for fates in _fates([choices for _, choices in loose]):
        yield dict(_seen(top, "", {id(node): fate for (node, _), fate in zip(loose, fates, strict=True)}))


def _loose(node: Node) -> Iterator[tuple[Node, list[Fate]]]:
    """Yield each node with something unsynced, and what may become of it, from lost to kept."""
    if not node.is_folder:
        assert node.content is not None
        if node.content != node.durable:
            yield node, [node.durable, node.content[: len(node.content) // 2], node.content]
        return
    if node.pending:
        count = len(node.pending)
        subsets = itertools.chain.from_iterable(itertools.combinations(range(count), size) for size in range(count + 1))
        yield node, list(subsets)
    reachable: dict[int, Node] = {}
    every: list[Mapping[str, Node | None]] = [node.kept, node.names, *node.pending]
    for names in every:
        reachable |= {id(child): child for name, child in names.items() if child and not name.startswith(".")}
    for child in reachable.values():
        yield from _loose(child)


def _fates(choices: list[list[Fate]]) -> Iterator[tuple[Fate, ...]]:
    total = 1
    for options in choices:
        total *= len(options)
    if total <= MOST_SUBSETS:
        yield from itertools.product(*choices)
        return
    lost, kept = [options[0] for options in choices], [options[-1] for options in choices]
    for base in (lost, kept):
        yield tuple(base)
        for at, options in enumerate(choices):
            yield from ((*base[:at], option, *base[at + 1 :]) for option in options)


def _seen(folder: Node, prefix: str, fates: dict[int, Fate]) -> Iterator[tuple[str, bytes | None]]:
    names = dict(folder.kept)
    chosen = fates.get(id(folder), ())
    assert isinstance(chosen, tuple)
    for at in chosen:
        _apply(names, folder.pending[at])
    for name, node in names.items():
        # what a publisher that died left behind is nobody's: trees that differ in it alone are one
        if name.startswith("."):
            continue
        if node.is_folder:
            yield f"{prefix}{name}", None
            yield from _seen(node, f"{prefix}{name}/", fates)
        else:
            content = fates.get(id(node), node.durable)
            assert isinstance(content, bytes)
            yield f"{prefix}{name}", content


def lay_out(tree: Tree, folder: Path) -> None:
    """Make a tree real in an empty folder."""
    for name, content in sorted(tree, key=lambda entry: entry[0]):
        path = folder / name
        path.mkdir() if content is None else path.write_bytes(b"".join(parts_of(content)))
