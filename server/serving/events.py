"""Events that come over HTTP: checked here, sent by whom the composition root names."""

from typing import Protocol

from common.clock import Clock
from common.errors import BrokerUnavailable
from common.events import Interaction, decode_event, encode_event
from server.serving.recommend import RequestIds
from server.serving.schemas import EventRequest


class EventSink(Protocol):
    """Sends events to a log."""

    def send(self, event: Interaction) -> tuple[int, int]:
        """Return partition and offset once the broker has acknowledged the event.

        Raises
        ------
        StreamError
            When it has not; the event may be on the topic all the same.
        """
        ...


class NoBroker:
    """Refuses every event, and says how to have them taken."""

    def send(self, event: Interaction) -> tuple[int, int]:
        """Refuse."""
        raise BrokerUnavailable(
            "this service was given no broker",
            expected="a service that knows where the topic is",
            consequence="the event was not stored",
            mend="anabranch serve --bootstrap-servers HOST:PORT",
        )


def event_of(body: EventRequest, new_id: RequestIds, clock: Clock) -> Interaction:
    """Return the event of a request, as a reader of the topic will see it.

    Raises
    ------
    MalformedEvent
        When a reader could not decode it.
    """
    event = Interaction(
        event_id=body.event_id or new_id(),
        user_id=body.user_id,
        item_id=body.item_id,
        action=body.action,
        ts=clock() if body.ts is None else body.ts,
        value=body.value,
        request_id=body.request_id,
        context=body.context,
    )
    # the way there and back: what is acknowledged must never end as a dead letter
    return decode_event(encode_event(event))
