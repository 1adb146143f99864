"""The curve over the number of users, in little: every row trains, keeps its budget and is told apart."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def figures() -> dict[str, object]:
    """Return what the benchmark prints for sixty users and two rounds."""
    command = [sys.executable, str(ROOT / "benchmarks" / "federated_users.py"), "--users", "60", "--rounds", "2"]
    command += ["--records", "30", "--rows", "off/shared", "--print"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.slow
def test_every_row_is_measured_within_its_budget(figures: dict[str, object]) -> None:
    points = figures["points"]
    assert isinstance(points, list)
    (point,) = points
    rows = point["rows"]
    assert set(rows) == {"off", "shared"}
    assert rows["off"]["epsilon"] is None
    assert 0.95 * 8.0 <= rows["shared"]["epsilon"] <= 8.0
    recalls = {name: row["recall@10"] for name, row in rows.items()}
    assert all(recall > point["random"] for recall in recalls.values())
    assert rows["off"]["share_of_recall"] == 1.0
