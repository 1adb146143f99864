"""The file operations that durability rests on, one a method, so that a test can record or fail each of them."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

Content = bytes | Sequence[bytes | memoryview]
"""What a file is to hold: whole, or in parts that follow each other, so that nobody needs to join them."""


def parts_of(content: Content) -> Sequence[bytes | memoryview]:
    """Return the parts of a content; one that is whole is its only part."""
    return [content] if isinstance(content, bytes) else content


class Disk:
    """A POSIX file system; nothing is durable before `sync` or `sync_folder` says so."""

    def sync(self, handle: int) -> None:
        """Make what an open file or folder holds survive a power cut."""
        os.fsync(handle)

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder survive a power cut."""
        handle = os.open(folder, os.O_RDONLY)
        try:
            self.sync(handle)
        finally:
            os.close(handle)

    def write(self, path: Path, content: Content) -> None:
        """Write and sync one file; its name is not durable before the folder is synced."""
        with path.open("wb") as file:
            file.writelines(parts_of(content))
            file.flush()
            self.sync(file.fileno())

    def make_folder(self, folder: Path) -> None:
        """Make one folder, whose parent exists; `FileExistsError` when it is there."""
        folder.mkdir()

    def make_folders(self, folder: Path) -> None:
        """Make a folder and the parents that are missing, each of them durable at once."""
        if folder.is_dir():
            return
        self.make_folders(folder.parent)
        try:
            self.make_folder(folder)
        except FileExistsError:
            if not folder.is_dir():
                raise
        # by whomever it was made: what is put into it below must not be lost with its name
        self.sync_folder(folder.parent)

    def replace(self, source: Path, target: Path) -> None:
        """Give a file the name of another, which is gone in the same instant."""
        os.replace(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a folder; refused when the target is a folder with content."""
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder and what is in it, as far as that can be done."""
        shutil.rmtree(folder, ignore_errors=True)


DISK = Disk()
"""The real one."""
