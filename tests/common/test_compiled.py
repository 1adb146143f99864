"""Machine code is kept where it can be, and done without where it cannot."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from common.compiled import compiled
@compiled
def half(value):
    return value / 2
assert half(3.0) == 1.5
print(sum(half.stats.cache_hits.values()), sum(half.stats.cache_misses.values()))
"""


@pytest.mark.parametrize("where", ["somewhere", "nowhere"])
def test_what_cannot_be_kept_is_compiled_anew(where: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = str(Path(__file__).parents[2])
    # the place that a package in an archive has, which this program is not
    only = {} if where == "somewhere" else {"NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    kept = str(tmp_path / "kept")
    seen = [
        subprocess.run(
            [sys.executable, str(program)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": root, "NUMBA_CACHE_DIR": kept, "PATH": "/usr/bin:/bin", **only},
        ).stdout.split()
        for _ in range(2)
    ]
    found, missed = ["1", "0"], ["0", "1"]
    assert seen == [missed, found if where == "somewhere" else missed]
    assert Path(kept).exists() == (where == "somewhere")
