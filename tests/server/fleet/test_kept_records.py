"""Records that many messages share are written and read once, and every message still has its own."""

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from server.fleet.inprocess import KEPT, Written
from server.fleet.wire import Task
from server.fleet.worker import message_of

configs = st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=5), max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["question", "request"]), configs), min_size=1, max_size=3 * KEPT))
def test_a_record_written_again_is_the_record_that_was_given(contents: list[tuple[str, dict[str, int | str]]]) -> None:
    written = Written()
    for name, content in contents:
        # each record dies after its turn, so that the next one may lie at the same address
        raw = written(name, ConfigRecord(dict(content)))
        found = recorddict_from_proto(ProtoRecordDict.FromString(raw))
        assert {key: dict(record) for key, record in found.config_records.items()} == {name: content}


def test_a_record_that_is_shared_is_written_once_for_each_name() -> None:
    written, shared = Written(), ConfigRecord({"round": 1})
    assert written("a", shared) is written("a", shared)
    assert written("a", shared) != written("b", shared)


def test_a_message_is_read_as_flower_reads_it_though_its_words_were_read_before() -> None:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    arrays = RecordDict({"more": ConfigRecord({"held": True})})
    for words in ("first", "second", "first"):
        for node in (5, 6):
            sent = Message(
                RecordDict({"request": ConfigRecord({"words": words})}), dst_node_id=node, message_type="train"
            )
            sent.metadata.__dict__["_message_id"] = f"{words} {node}"
            raw = message_to_proto(sent).SerializeToString()
            found = message_of(Task(raw, {}, None), arrays)
            assert found.metadata == message_from_proto(message_to_proto(sent)).metadata
            assert {**found.content} == {**sent.content, **arrays}
            del found.content["request"]  # an app may: the next message has it all the same
