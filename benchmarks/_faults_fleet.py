"""The serve workers of the fault benchmark: started, killed, stopped and replaced, each life with its own log."""

import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._common import ROOT
from tests.system import fault_support as faults
from tests.system import run_support as runs

_END_S, _SAY_S = 60.0, 3.0


@dataclass
class Life:
    """One process of a worker, from its start to its end."""

    name: str
    run: runs.Run
    paused: bool = False
    last_words: str = ""

    @property
    def text(self) -> str:
        """What it has written to its log."""
        return self.last_words or self.run.output


@dataclass
class Fleet:
    """Workers of one stream, by place ("a", "b", ...). Who ends by itself is started again by `tend`."""

    stream: faults.Stream
    at: dict[str, Life] = field(default_factory=dict)
    past: list[Life] = field(default_factory=list)
    hung: int = 0  # how many did not end when they were asked to
    ends: Counter[int] = field(default_factory=Counter)  # exit codes of those that ended by themselves

    def start(self, place: str) -> Life:
        """Start the next life of a place."""
        shared = self.stream.settings.to_env()
        names = ("DRIFTLINE_BLOBS", "DRIFTLINE_SECRET")
        env = {name: shared[name] for name in names} | {
            "PYTHONPATH": str(ROOT),
            "DRIFTLINE_WORKER": f"serve-{place}",
        }
        data = self.stream.settings.data.parent / place
        command = [str(runs.DRIFTLINE), "serve", "--task", str(self.stream.task.path)]
        command += ["--kafka", self.stream.settings.kafka]
        life = Life(f"{place}{len(self.past)}", runs.Run(data, command, runs.environment(data, **env)))
        self.at[place] = life
        return life

    def kill(self, place: str) -> Life:
        """End a place's process as a crash would."""
        return self._end(place, signal.SIGKILL)

    def leave(self, place: str) -> Life:
        """Ask a place's process to end and wait for it."""
        return self._end(place, signal.SIGTERM)

    def pause(self, place: str) -> None:
        """Stop a process where it stands."""
        self.at[place].paused = True
        os.kill(self.at[place].run.process.pid, signal.SIGSTOP)

    def resume(self, place: str) -> None:
        """Let it go on."""
        self.at[place].paused = False
        os.kill(self.at[place].run.process.pid, signal.SIGCONT)

    def tend(self) -> None:
        """Start again what has ended by itself."""
        for place, life in list(self.at.items()):
            code = life.run.process.poll()
            if code is not None:
                self.ends[code] += 1
                self._bury(place)
                self.start(place)

    def owned(self, life: Life) -> set[int]:
        """Partitions that a life was the last to take over, of the last stage."""
        logs = {one.name: one.text for one in [*self.past, *self.at.values()]}
        topic = self.stream.topics.stage(len(self.stream.task.entities) - 1)
        return {p for p, name in faults.owners(logs, topic).items() if name == life.name}

    def close(self) -> None:
        """End everything."""
        for place in list(self.at):
            if self.at[place].paused:
                self.resume(place)
            self.leave(place)

    def keep_logs(self, folder: Path) -> None:
        """Leave every life's log in a folder, for a person who looks for a fault's cause."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, life in enumerate([*self.past, *self.at.values()]):
            (folder / f"{number:04d}-{life.name}.log").write_text(life.text)

    def _end(self, place: str, number: int) -> Life:
        life = self.at[place]
        if life.run.process.poll() is None:
            life.run.process.send_signal(number)
        try:
            life.run.ended(_END_S)
        except subprocess.TimeoutExpired:
            self.hung += 1
            life.run.process.send_signal(signal.SIGUSR1)  # Faust then says in the log where it stands
            time.sleep(_SAY_S)
            life.run.process.kill()
            life.run.ended()
        return self._bury(place)

    def _bury(self, place: str) -> Life:
        life = self.at.pop(place)
        life.last_words = life.run.output or " "
        life.run.close()
        self.past.append(life)
        return life
