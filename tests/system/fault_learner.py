"""A learner that is killed in the midst of an update; for the tests only.

    python fault_learner.py PART learn --task ... --kafka ...

The real command. It ends itself by SIGKILL when it asks for what comes after part PART of an update; what it has sent
before may be with Kafka or not. Nothing in the product knows of this: a function is wrapped here before.
"""

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from streams import cli, outlet

module: Any = outlet
plain = module.split


def dying(meta: Any, payload: bytes) -> Iterator[Any]:
    """The records of an update, until the part."""
    for number, record in enumerate(plain(meta, payload), 1):
        yield record
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    last = int(sys.argv[1])
    module.split = dying
    sys.argv = ["driftline", *sys.argv[2:]]
    cli.main()
