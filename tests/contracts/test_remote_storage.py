"""Object stores know neither locks nor renames: what they promise instead, step by step and death by death."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from common.errors import StoreError
from server.registry import Registry
from server.storage.base import Storage
from server.storage.remote import RemoteStorage
from tests.contracts.conftest import Place
from tests.contracts.test_storage import FILES, FOREVER, INFO, check_moved_and_removed, manifest_of
from tests.server.serving.stores import checker_board, publish


class Turns:
    """Lets threads take single steps in an order that is drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self._order, self._condition = random.Random(seed), threading.Condition()  # noqa: S311 - a schedule, no secret
        self._waiting: set[int] = set()
        self._alive = 2
        self._turn: int | None = None

    def step(self) -> None:
        with self._condition:
            self._waiting.add(threading.get_ident())
            self._draw()
            self._condition.wait_for(lambda: self._turn == threading.get_ident())
            self._turn = None
            self._waiting.discard(threading.get_ident())

    def end(self) -> None:
        with self._condition:
            self._alive -= 1
            self._draw()

    def _draw(self) -> None:
        if self._turn is None and self._waiting and len(self._waiting) == self._alive:
            self._turn = self._order.choice(sorted(self._waiting))
            self._condition.notify_all()


class SteppedFiles:
    """A file system each of whose calls waits for its turn."""

    def __init__(self, files: object, turns: Turns) -> None:
        self._files, self._turns = files, turns

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            self._turns.step()
            return getattr(self._files, name)(*arguments, **options)

        return call


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_without_a_lock_no_order_of_single_steps_leaves_a_name_without_a_version(place: Place) -> None:
    outcomes = set()
    for seed in range(150):
        storage = RemoteStorage(f"{place.address}/{seed}")
        for version in ("kept", "v1"):
            storage.publish(version, {"a": b"1"}, manifest_of(version))
        storage.point("current", "kept")
        turns = Turns(seed)

        def stepped(work: Callable[[Storage], bool], turns: Turns = turns, seed: int = seed) -> bool:
            mine = RemoteStorage(f"{place.address}/{seed}")
            mine._files = SteppedFiles(mine._files, turns)
            try:
                return work(mine)
            finally:
                turns.end()

        with ThreadPoolExecutor(2) as pool:
            moved = pool.submit(stepped, lambda mine: mine.point("current", "v1"))
            removed = pool.submit(stepped, lambda mine: mine.delete("v1"))
            outcome = moved.result(30), removed.result(30)
        check_moved_and_removed(storage, *outcome)
        outcomes.add(outcome)
    # both may see each other and both give way
    assert outcomes == {(True, False), (False, True), (False, False)}


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_no_order_of_single_steps_lets_two_publishers_win(place: Place) -> None:
    winners = set()
    for seed in range(60):
        turns = Turns(seed)

        def publish_stepped(mark: int, turns: Turns = turns, seed: int = seed) -> bool:
            mine = RemoteStorage(f"{place.address}/{seed}")
            mine._files = SteppedFiles(mine._files, turns)
            try:
                mine.publish("v1", {"a": bytes([mark]), "b": bytes([mark])}, manifest_of("v1"))
            except FileExistsError:
                return False
            finally:
                turns.end()
            return True

        with ThreadPoolExecutor(2) as pool:
            won = [done.result(30) for done in [pool.submit(publish_stepped, mark) for mark in range(2)]]
        assert sum(won) == 1, seed
        storage = RemoteStorage(f"{place.address}/{seed}")
        assert {storage.read_file("v1", name) for name in "ab"} == {bytes([won.index(True)])}
        assert storage.sweep(FOREVER) == 0
        winners.add(won.index(True))
    assert winners == {0, 1}


@pytest.mark.parametrize("place", ["memory", "s3"], indirect=True)
def test_what_makes_a_version_is_put_only_where_nothing_is(place: Place) -> None:
    storage = place.storage()
    assert isinstance(storage, RemoteStorage)
    assert storage._claim("versions/v1/published", b"first")
    assert not storage._claim("versions/v1/published", b"other")
    assert storage.read("versions/v1/published") == b"first"
    # its answer got lost, and it was sent again
    assert storage._claim("versions/v1/published", b"first")


class UnconditionalFiles:
    """A file system that knows no condition, as most of fsspec's: the last put stays."""

    def __init__(self, files: object) -> None:
        self._files = files

    def __getattr__(self, name: str) -> object:
        def put(path: str, content: bytes, mode: str = "overwrite") -> object:
            return getattr(self._files, name)(path, content)

        return put if name == "pipe_file" else getattr(self._files, name)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_without_conditions_both_may_win_and_the_version_is_whole(place: Place) -> None:
    winners = set()
    for seed in range(60):
        turns = Turns(seed)

        def publish_stepped(mark: int, turns: Turns = turns, seed: int = seed) -> bool:
            mine = RemoteStorage(f"{place.address}/{seed}")
            mine._files = SteppedFiles(UnconditionalFiles(mine._files), turns)
            try:
                mine.publish("v1", {"a": bytes([mark]), "b": bytes([mark])}, manifest_of("v1"))
            except FileExistsError:
                return False
            finally:
                turns.end()
            return True

        with ThreadPoolExecutor(2) as pool:
            won = tuple(done.result(30) for done in [pool.submit(publish_stepped, mark) for mark in range(2)])
        storage = RemoteStorage(f"{place.address}/{seed}")
        (content,) = {storage.read_file("v1", name) for name in "ab"}
        assert won[content[0]], "what is there is the version of one who believes it"
        assert storage.manifest("v1").version == "v1"
        winners.add(won)
    assert winners == {(True, False), (False, True), (True, True)}


class Cut(BaseException):
    """The process ends here."""


class MortalFiles:
    """A file system whose user dies before the n-th object is put."""

    def __init__(self, files: object, left: int) -> None:
        self._files, self._left = files, left

    def __getattr__(self, name: str) -> object:
        def put(*arguments: object, **options: object) -> object:
            self._left -= 1
            if self._left < 0:
                raise Cut
            return getattr(self._files, name)(*arguments, **options)

        return put if name in ("pipe_file", "rm_file", "rm") else getattr(self._files, name)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_death_before_every_put_leaves_a_whole_current(place: Place) -> None:
    registry = Registry.create(place.address, INFO, checker_board())
    publish(registry, "v000001", seed=1)
    seen = set()
    for step in range(40):
        dying = RemoteStorage(place.address)
        dying._files = MortalFiles(dying._files, step)
        died = True
        with suppress(Cut):
            publish(Registry.of(dying), "v000002", seed=2)
            died = False
        current = registry.current()
        assert registry.verify("current") == current
        assert all(registry.verify(name) for name in registry.names())
        seen.add((current.version, "v000002" in registry.names()))
        registry.point("current", "v000001")
        registry.storage.delete("v000002")
        registry.storage.sweep(FOREVER)
        if not died:
            break
    assert not died
    assert seen == {("v000001", False), ("v000001", True), ("v000002", True)}


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_remover_that_died_is_made_good(place: Place) -> None:
    for step in range(1, 9):
        storage = RemoteStorage(f"{place.address}/{step}")
        storage.publish("v1", FILES, manifest_of("v1"))
        dying = RemoteStorage(f"{place.address}/{step}")
        dying._files = MortalFiles(dying._files, step)
        with suppress(Cut):
            dying.delete("v1")
        if storage.has("v1"):
            assert not storage.point("current", "v1"), "somebody may be about to remove it"
        storage.sweep(FOREVER)
        # what is still there is whole and can be pointed at again; what is not left nothing
        assert storage.point("current", "v1") is storage.has("v1")
        assert storage._below("versions") == [] or storage.read_file("v1", "notes.json") == b"{}"


class SilentFiles:
    """A file system that cannot be reached; its error is no `OSError`, as those of object stores are not."""

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object, **options: object) -> object:
            raise RuntimeError("Could not connect to the endpoint URL")

        return call


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_store_that_does_not_answer_is_told_in_one_line(place: Place) -> None:
    storage = RemoteStorage(place.address)
    storage.publish("v1", FILES, manifest_of("v1"))
    storage._files = SilentFiles()
    works: list[Callable[[], object]] = [
        lambda: storage.read("store.json"),
        lambda: storage.write("store.json", b""),
        lambda: storage.publish("v2", FILES, manifest_of("v2")),
        lambda: storage.manifest("v1"),
        lambda: storage.point("current", "v1"),
        lambda: storage.delete("v1"),
        lambda: storage.sweep(0),
        lambda: storage.size("v1"),
        storage.versions,
        storage.pointers,
    ]
    for work in works:
        with pytest.raises(
            StoreError, match=r"memory://.* cannot be reached: RuntimeError.*check the address"
        ) as raised:
            work()
        assert "\n" not in str(raised.value)
