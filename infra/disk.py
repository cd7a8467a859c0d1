"""What a disk refuses, in words of the person who owns it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import UserError

_FIXES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there: the quota is used up",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


@contextmanager
def usable(place: Path, instead: str) -> Iterator[None]:
    """Turns what a disk refuses while `place` is read or written into a UserError that names `place`.

    `instead` says how to choose another place. An OSError that is not about the disk goes through.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FIXES:
            fix = f"{_FIXES[error.errno]}; or {instead}"
        elif error.errno in _REFUSED:
            fix = f"give this user the right to read and write there; or {instead}"
        elif error.errno in _IN_THE_WAY:
            fix = f"move away what is in the way; or {instead}"
        else:
            raise
        raise UserError(f"cannot use {error.filename or place}: {error.strerror}", fix) from error
