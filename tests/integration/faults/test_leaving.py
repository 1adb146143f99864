"""SIGTERM: a checkpoint, then the end, also while the broker is away; how long that took is printed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.events import encode_event
from stream.broker import EmbeddedBroker
from stream.checkpoint import CheckpointStore
from tests.stream.clicks import some_events
from tests.stream.topics import put

SCRIPT = "import sys; from anabranch.cli import main; sys.argv = ['anabranch', *sys.argv[1:]]; main()"


@pytest.mark.slow
@pytest.mark.parametrize("away", [False, True])
def test_sigterm_stores_and_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str], away: bool) -> None:
    records = [encode_event(event) for event in some_events(700)]
    with EmbeddedBroker() as broker:
        put(broker.bootstrap_servers, "clicks", records)
        options = ["--bootstrap-servers", broker.bootstrap_servers, "--store", str(tmp_path), "--learner", "mf"]
        options += ["--checkpoint-every", "300", "--checkpoint-seconds", "1000"]
        with subprocess.Popen([sys.executable, "-c", SCRIPT, "stream", "learn", *options]) as worker:
            deadline = time.monotonic() + 120
            while CheckpointStore(tmp_path).newest(pytest.fail) is None and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(2)  # the rest is applied, and not yet stored
            if away:
                broker.stop()
            told = time.monotonic()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
            seconds = time.monotonic() - told
    checkpoint = CheckpointStore(tmp_path).newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.details["events"] == 700
    with capsys.disabled():
        sys.stdout.write(f"\nSIGTERM with the broker {'away' if away else 'there'}: gone after {seconds:.1f} s\n")
