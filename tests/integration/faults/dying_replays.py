"""Runs replays of dead letters that die by SIGKILL, one after the other.

Started as a script: ``python -m tests.integration.faults.dying_replays SERVERS TOPIC DEATH...``; a death is the number
of the send at which the process dies, 0 finishes. Prints the signal that ended each, or 0.
"""

import os
import signal
import sys
from typing import Any

from stream import replay
from stream.kafka_log import KafkaLog
from stream.kafka_sink import KafkaTransactionalSink

BATCH = 20


def _work(servers: str, topic: str, death: int) -> None:
    left = [death]
    send = KafkaTransactionalSink.send

    def dying(self: KafkaTransactionalSink, *arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return send(self, *arguments, **options)

    KafkaTransactionalSink.send = dying  # type: ignore[method-assign,assignment]  # the fault
    replay._BATCH = BATCH
    replay.replay_letters(KafkaLog(servers), topic)


def main(servers: str, topic: str, *deaths: str) -> None:
    """Fork one replay a death and wait for it."""
    for death in deaths:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _work(servers, topic, int(death))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
