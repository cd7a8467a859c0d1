"""What followed from what: alarm, challengers, verdict, swap, and how the swap ended."""

from collections.abc import Iterator, Sequence

from streams.report.data import Entry

VERDICTS = {"canary", "promote", "reject", "expire", "retire", "recommend", "decline"}
ENDS = {"rollback", "confirm", "refuse", "straggle"}


def causes(entries: Sequence[Entry]) -> dict[int, int]:
    """Number of an entry → number of the entry that it followed from.

    A start follows its alarm; a verdict the start of its lineage; what comes after a swap follows that swap. Lineages
    are looked up backwards: a learner that went back to a checkpoint may have given a name twice.
    """
    found: dict[int, int] = {}
    alarms = {entry.row["alert_id"]: entry.number for entry in entries if entry.is_alert}
    started: dict[str, int] = {}
    swapped: dict[str, int] = {}
    for entry in entries:
        if entry.is_alert:
            continue
        action, lineage, evidence = entry.row["action"], entry.row["lineage"], entry.row["evidence"]
        if action == "tune":  # its winner's start names the population as its alarm
            alarms[f"tuned-{evidence['population']}"] = entry.number
            continue
        cause = None
        if action in ENDS:
            about = entry.row["champion"] if action == "rollback" else lineage
            cause = swapped.get(str(about))
        elif action in VERDICTS:
            cause = started.get(lineage)
        cause = cause or alarms.get(str(evidence.get("alert_id")))
        if action == "start":
            started[lineage] = entry.number
        if entry.is_swap:
            swapped[lineage] = entry.number
        if cause is not None and cause != entry.number:
            found[entry.number] = cause
    return found


def followers(number: int, caused: dict[int, int]) -> Iterator[int]:
    """Every entry that came of an entry, directly or not, in order."""
    for each in sorted(caused):
        root = each
        while root in caused and caused[root] < root:
            root = caused[root]
            if root == number:
                yield each
                break
