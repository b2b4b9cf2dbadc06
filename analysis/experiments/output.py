"""Files that are written whole or not at all, whenever the process is killed."""

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["delete_leftovers", "replacing", "write"]

_DAY = 24 * 3600


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file, text as UTF-8. Killed at any moment, the old file is there or the new one; folders are made."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """An open file that takes the place of ``path`` where the block ends, and is deleted where it raises."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def delete_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes.

    Another computer's processes cannot be asked for, so its files must be a day old; writing one takes milliseconds.
    """
    for temporary in folder.glob(".*.tmp"):
        ours = re.search(re.escape(f".{platform.node()}.") + r"(\d+)\.tmp$", temporary.name)
        try:
            if (ours and not _alive(int(ours[1]))) or time.time() - temporary.stat().st_mtime > _DAY:
                temporary.unlink()
        except FileNotFoundError:
            pass  # deleted, or renamed to what it was to replace, by another process


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # here os.kill would end the process instead of asking for it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
