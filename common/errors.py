"""Every error that Anabranch raises on purpose.

The tree::

    AnabranchError (exit 1)
    ├── UsageError (exit 2)          a value the caller gave cannot be used
    │   ├── UnknownName              not one of the known names
    │   └── InvalidSetting           out of range, or two settings that exclude each other
    ├── DataError                    data that is missing, empty or malformed
    │   ├── DatasetUnavailable
    │   ├── ColumnMissing
    │   ├── EmptyData
    │   └── MalformedEvent
    ├── EncoderError                 the text encoder cannot be had, or is another one
    ├── OutOfMemory                  the device's memory is too small for a batch, and for half of it
    ├── PrivacyError                 the privacy contract would be broken
    │   ├── BudgetExceeded
    │   └── LedgerCorrupt
    ├── RoundError                   a federated round that cannot go on
    │   └── UpdateRejected           one reply, quarantined
    ├── StoreError                   the folder of models
    │   ├── StoreUnreachable         it does not answer
    │   ├── StoreMismatch            made by another version, encoder or data set
    │   ├── VersionExists            versions are immutable; another publisher was first
    │   ├── VersionNotFound
    │   ├── NoModel                  nothing published yet
    │   └── ArtifactCorrupt
    ├── StreamError                  the click pipeline
    │   ├── BrokerUnavailable
    │   ├── OffsetLost
    │   ├── TooManyBadRecords        the circuit breaker: stop before the dead letters swallow the topic
    │   └── CheckpointMismatch
    └── ServiceError                 the HTTP service
        └── PortInUse
"""

from collections.abc import Mapping


class AnabranchError(Exception):
    """Base of all errors raised on purpose; its text is one line.

    Parameters
    ----------
    found
        What was found, with the offending value.
    expected
        What would have been right.
    consequence
        What happens now ("nothing was written").
    mend
        What the reader can do about it.
    """

    exit_code = 1

    def __init__(self, found: str, *, expected: str = "", consequence: str = "", mend: str = "") -> None:
        self.found, self.expected, self.consequence, self.mend = found, expected, consequence, mend
        parts = [found]
        if expected:
            parts.append(f"expected {expected}")
        if consequence:
            parts.append(consequence)
        if mend:
            parts.append(f"to mend it: {mend}")
        super().__init__("; ".join(" ".join(part.split()) for part in parts))


class UsageError(AnabranchError):
    """A value given by the caller cannot be used."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not one of the known ones.

    Parameters
    ----------
    kind
        What the name stands for ("data set").
    name
        The name that was given.
    known
        The names that would work.
    """

    def __init__(self, kind: str, name: str, known: list[str], *, mend: str = "") -> None:
        super().__init__(f"unknown {kind} {name!r}", expected=f"one of {', '.join(sorted(known))}", mend=mend)


class InvalidSetting(UsageError):
    """A setting out of range, or two settings that exclude each other."""


class DataError(AnabranchError):
    """Data that is missing, empty or malformed."""


class DatasetUnavailable(DataError):
    """A data set that could be obtained from none of its sources."""


class ColumnMissing(DataError):
    """A table lacks a column that the mapping names."""


class EmptyData(DataError):
    """Nothing is left to work on."""


class MalformedEvent(DataError):
    """A record that is not an event of a known schema version."""


class EncoderError(AnabranchError):
    """The text encoder cannot be had, or is not the one that was expected."""


class OutOfMemory(AnabranchError):
    """The device's memory is too small for a batch, and for half of it."""


class PrivacyError(AnabranchError):
    """Going on would break the privacy contract."""


class BudgetExceeded(PrivacyError):
    """The next release would spend more than the budget."""


class LedgerCorrupt(PrivacyError):
    """The privacy ledger cannot be read, or does not fit this run."""


class RoundError(AnabranchError):
    """A federated round cannot go on."""


class UpdateRejected(RoundError):
    """One client's update is unusable and goes to quarantine."""


class StoreError(AnabranchError):
    """The folder of models cannot be used."""


class StoreUnreachable(StoreError):
    """A store does not answer; asked again, it may."""


class StoreMismatch(StoreError):
    """The store was made by another version, encoder or data set."""


class VersionExists(StoreError):
    """The version is there already, perhaps by another publisher; nothing was written."""


class VersionNotFound(StoreError):
    """No such model version."""


class NoModel(StoreError):
    """Nothing has been published yet."""


class ArtifactCorrupt(StoreError):
    """A stored file is not what its manifest says."""


class StreamError(AnabranchError):
    """The click pipeline cannot go on."""


class BrokerUnavailable(StreamError):
    """No Kafka broker answers, or it could not be started."""


class OffsetLost(StreamError):
    """An offset that the broker does not have: deleted, or above the end of a log that was cut.

    Parameters
    ----------
    positions
        Partition to the offset that was asked for.
    cut
        Those of them whose log was cut and written anew, to where it was cut; None where the broker does not know.
    """

    def __init__(
        self,
        found: str,
        *,
        positions: Mapping[int, int] | None = None,
        cut: Mapping[int, int | None] | None = None,
        expected: str = "",
        consequence: str = "",
        mend: str = "",
    ) -> None:
        super().__init__(found, expected=expected, consequence=consequence, mend=mend)
        self.positions, self.cut = dict(positions or {}), dict(cut or {})


class TooManyBadRecords(StreamError):
    """So many records cannot be read that it is not the records' fault."""


class CheckpointMismatch(StreamError):
    """A checkpoint of another learner, topic or schema."""


class ServiceError(AnabranchError):
    """The HTTP service cannot run."""


class PortInUse(ServiceError):
    """Another process listens on the port."""
