"""What the operating system says of a process."""

from pathlib import Path


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not, nor one that is reaped while it is looked at."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
