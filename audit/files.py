"""Files that are replaced as a whole, so that a reader sees the old content or the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def replaceable(path: Path) -> Path:
    """Return the path at which to put a new file: that of the target if `path` is a link.

    Raises:
        OSError: it is a device, a pipe or a folder. A file in its place would break other programs.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return target
