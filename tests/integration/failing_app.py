"""The real ClientApp at nodes that fail: a file beside the ledger says at which stage, and how."""

import os
import signal
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import make_app
from common.secret_sum import decode_question

FAILURE = "failure"
"""Name of the file: a stage and "die" or "raise", apart by a space."""


class FailingApp(ClientApp):
    """Hands every message on to the real app, unless it is the one to fail at."""

    def __init__(self) -> None:
        super().__init__()
        self._app = make_app()

    def __call__(self, message: Message, context: Context) -> Message:
        """Fail as told, or answer."""
        path = Path(str(context.node_config["ledger"])).with_name(FAILURE)
        if "question" in message.content.config_records and path.exists():
            body = message.content.config_records["question"]["body"]
            assert isinstance(body, bytes)
            stage, how = path.read_text().split()
            if type(decode_question(body)).__name__ == stage:
                if how == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("this node fails here")
        return self._app(message, context)


app = FailingApp()
