"""Answers from a store without a service: the same bundle and the same functions as over HTTP."""

from collections.abc import Iterable
from pathlib import Path

from server.registry import CURRENT, Registry
from server.serving.bundle import Bundle, load_bundle
from server.serving.query import QueryEncoder, QueryTexts
from server.serving.recommend import (
    Question,
    RequestIds,
    SimilarItems,
    Slate,
    random_request_id,
    recommend,
    similar,
)


def lazy_queries(device: str = "auto") -> QueryTexts:
    """Return a query encoder that loads torch and the text model at the first query.

    Parameters
    ----------
    device
        "auto", "cpu", "cuda" or "mps".
    """

    def load(name: str) -> QueryEncoder:
        # here and not above: a question without a text needs no torch
        from common.encoder.queries import load_for_queries
        from common.encoder.spec import EncoderSpec

        return load_for_queries(EncoderSpec.from_name(name), device)

    return QueryTexts(load)


class Recommender:
    """One model version, with the stream's newest snapshot, ready to answer.

    Made by `Recommender.load`.

    Parameters
    ----------
    bundle
        What answers are made of.
    queries
        Encodes query texts.
    new_id
        Gives request ids.

    Examples
    --------
    >>> recommender = Recommender.load("anabranch-store")  # doctest: +SKIP
    >>> slate = recommender.recommend(user="196", k=5)  # doctest: +SKIP
    >>> [item.title for item in slate.items]  # doctest: +SKIP
    """

    def __init__(self, bundle: Bundle, queries: QueryTexts, new_id: RequestIds = random_request_id) -> None:
        self.bundle = bundle
        self._queries, self._new_id = queries, new_id

    @classmethod
    def load(
        cls, store: Path | str, *, version: str = CURRENT, device: str = "auto", stream_store: Path | None = None
    ) -> "Recommender":
        """Read a store.

        Parameters
        ----------
        store
            Its folder, or an address like ``s3://bucket/prefix``.
        version
            A model version, or a pointer name.
        device
            Where query texts are encoded; used at the first query.
        stream_store
            Folder of another store whose newest snapshot of the stream answers too, as for models at an address; None
            takes the store's own.

        Raises
        ------
        NoModel
            When there is no store, or nothing was published in it.
        VersionNotFound
            When there is no such version.
        ArtifactCorrupt
            When a file is not what its manifest says.
        StoreError
            When there is no stream store.
        """
        return cls(load_bundle(Registry.open(store), version, stream_store), lazy_queries(device))

    @property
    def version(self) -> str:
        """The model version that answers."""
        return self.bundle.version

    def recommend(
        self,
        user: str | None = None,
        history: Iterable[str] = (),
        query: str | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        explain: bool = False,
        *,
        categories: Iterable[str] = (),
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        diversity: float = 0.0,
        at: int | None = None,
        explore: float = 0.0,
    ) -> Slate:
        """Recommend for a user, a history, a text, or any of them together; what is popular when none is given.

        Parameters
        ----------
        user
            Whose history and seen items are used.
        history
            Ids of items liked beyond what is known of the user, oldest first.
        query
            Text to be close to.
        k
            How many items.
        exclude_seen
            Leave out what the user liked already and what `history` names.
        explain
            Give reasons whose weights add up to each score.
        categories
            Only items that have one of these; none takes all.
        allow, deny
            Only these items (none takes all), and none of those.
        diversity
            0 to 1: how much less alike the items are to be, by their texts.
        at
            When it is asked, in milliseconds since the epoch; None is not long after the user's last like.
        explore
            0 to 1: how often a slot is given to any of the items in question.

        Raises
        ------
        InvalidSetting
            When a value is out of range.
        StoreMismatch
            When the text encoder here is not the one the model was trained on.
        """
        question = Question(
            user,
            tuple(history),
            query,
            k,
            exclude_seen,
            explain,
            tuple(categories),
            tuple(allow),
            tuple(deny),
            diversity,
            at,
            explore,
        )
        vector = None if query is None else self._queries.vector(self.bundle.model, query)
        return recommend(self.bundle, question, vector, self._new_id())

    def similar(self, item_id: str, k: int = 10) -> SimilarItems:
        """Return the k items whose text is most like the item's.

        Raises
        ------
        UnknownItem
            When the catalogue does not hold it.
        """
        return similar(self.bundle, item_id, k)
