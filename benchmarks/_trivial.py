"""A ClientApp whose step is nothing: it answers a train request with zeros, so that a round is all overhead."""

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import decode, encode
from common.updates import AdapterUpdate, UpdateMeta

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with an update of zeros of the tensors that were asked for."""
    request, base = decode(message)
    arrays = {name: np.zeros_like(base[name]) for name in request.trained}
    meta = UpdateMeta(str(context.node_id), request.base_version, request.strategy, request.round, 1.0)
    return Message(encode(AdapterUpdate(meta, arrays)), reply_to=message)
