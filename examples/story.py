"""Three programs record what they do, while the service that they record in is killed twice.

    make story

Meanwhile a reader follows the feed of changes. In the end, the programs, the list of the service,
an export and the feed must agree: every started task is present once, every change was delivered
once, and the hash of the export is correct.

Nothing is simulated. The service is `audit serve` with a PostgreSQL of its own, in a folder that is
removed at the end. It is killed by SIGKILL, so it can neither finish nor save anything.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.synchronize import Event
from pathlib import Path

from audit.client import Client, FeedChange, Unavailable
from audit.recorder import Recorder

AUDIT = Path(sys.executable).with_name("audit")
PROGRAMS = 3
FAILING = 0.1
SERVICES = ("payments", "search", "checkout", "mail")
#: The time limit of each step. A step that works takes much less.
LONGEST_SECONDS = 120.0
BEGAN = time.monotonic()

#: The last state of each task, by its id.
States = Mapping[str, str]


class StoryError(Exception):
    """Something is not as it should be."""


# The programs that record.


def work(url: str, spool: Path, journal: Path, stopping: Event) -> None:
    """Run tasks until the event is set. Also write what happens to a journal of the story."""
    recorder = Recorder(url, spool=spool, created_by="story")
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while not stopping.is_set():
        service = random.choice(SERVICES)
        scope = recorder.task(f"Deploy {service}", services=[service])
        with contextlib.suppress(RuntimeError), scope as task:
            os.write(file, f"{task.task_id} executing\n".encode())
            time.sleep(random.uniform(0, 0.05))
            if random.random() < FAILING:
                raise RuntimeError("an instance did not start")
        os.write(file, f"{task.task_id} {task.status}\n".encode())
    recorder.close()


def states_in_journal(journal: Path) -> States:
    """Return the last states of the tasks that the programs have started."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return dict(line.split() for line in lines)


# The reader of the feed.


class Reader(threading.Thread):
    """Follows all changes from the first one on, and continues where it was interrupted."""

    def __init__(self, url: str) -> None:
        super().__init__(name="reader", daemon=True)
        self._url = url
        self.changes: list[FeedChange] = []
        self.failures = 0

    def run(self) -> None:
        """Read for ever."""
        position: int | None = 0
        with Client(self._url, tries=1) as client:
            while True:
                feed = client.changes(position)
                with contextlib.suppress(Unavailable):
                    for change in feed:
                        self.changes.append(change)
                position = feed.position
                self.failures += 1
                time.sleep(0.2)


def states_in_feed(reader: Reader) -> States:
    """Return the last states of the tasks of which the feed has delivered changes."""
    return {str(change.task_id): str(change.status) for change in list(reader.changes)}


# The service.


class Service:
    """`audit serve` at a port, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the service, and wait until it accepts requests."""
        with (self._folder / "service.log").open("a") as log:
            self._process = subprocess.Popen(
                [AUDIT, "serve", "--port", str(self._port), "--data-dir", self._folder / "data"],
                stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        if not any(line.startswith("Ctrl-C") for line in self._process.stdout or ()):
            raise StoryError((self._folder / "service.log").read_text())

    def kill(self) -> None:
        """Kill all processes of the service."""
        self._end(lambda process: os.killpg(process.pid, signal.SIGKILL))

    def stop(self) -> None:
        """End the service as Ctrl-C does."""
        self._end(lambda process: process.send_signal(signal.SIGINT))

    def _end(self, end: Callable[[subprocess.Popen[str]], None]) -> None:
        process, self._process = self._process, None
        if process is not None:
            end(process)
            process.communicate(timeout=LONGEST_SECONDS)


def states_in_list(client: Client) -> States:
    """Return the states of the tasks that the service lists."""
    tasks = [(str(task.task_id), str(task.status)) for task in client.query()]
    if len(tasks) != len(dict(tasks)):
        raise StoryError("the service lists a task twice")
    return dict(tasks)


def states_in_export(client: Client, file: Path) -> States:
    """Export all tasks to a file; return their states, after a check of the file's hash."""
    manifest = client.export(file)
    content = file.read_bytes()
    if not manifest.recorded or hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise StoryError("the export does not have the hash that the service has recorded")
    say(f"the export has the hash that the service has recorded: {manifest.sha256}")
    tasks = [json.loads(line) for line in content.splitlines()]
    states = {task["task_id"]: task["status"] for task in tasks}
    if len(tasks) != len(states):
        raise StoryError("the export has a task twice")
    return states


# The story.


def say(text: str) -> None:
    """Print what happens, and when."""
    print(f"{time.monotonic() - BEGAN:5.1f} s  {text}", flush=True)


def wait_for(what: str, condition: Callable[[], object]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + LONGEST_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise StoryError(f"not within {LONGEST_SECONDS:g} seconds: {what}")
        time.sleep(0.02)


def record(service: Service, reader: Reader, folder: Path, tasks: int) -> States:
    """Let the programs work while the service is killed twice; return the states of their tasks."""
    journal, spool = folder / "journal", folder / "spool.db"

    def started() -> int:
        return len(states_in_journal(journal))

    def start_more() -> None:
        wanted = started() + tasks
        wait_for("the programs start tasks", lambda: started() >= wanted)

    def interrupt() -> None:
        wait_for("the feed delivers changes", lambda: reader.changes)
        service.kill()
        known = len(reader.changes)
        say(f"the service is killed; the programs have started {started()} tasks")
        start_more()
        say(f"the service is started again; the programs have started {started()} tasks")
        service.start()
        wait_for("the feed delivers more changes", lambda: len(reader.changes) > known)
        say(f"the feed continues after change {known - 1}")

    processes = multiprocessing.get_context("spawn")
    stopping = processes.Event()
    programs = [
        processes.Process(target=work, args=(service.url, spool, journal, stopping), daemon=True)
        for _ in range(PROGRAMS)
    ]
    for program in programs:
        program.start()
    say(f"{PROGRAMS} programs record their tasks, and a reader follows the feed")
    start_more()
    interrupt()
    interrupt()
    start_more()
    stopping.set()
    for program in programs:
        program.join(LONGEST_SECONDS)
    with Recorder(service.url, spool=spool) as recorder:
        if not recorder.flush(LONGEST_SECONDS):
            raise StoryError("records still wait in the spool")
        stats = recorder.stats()
    if stats.refused or stats.running:
        raise StoryError(f"the spool still has tasks: {stats}")
    say("the programs have ended; the service has everything that they recorded")
    return states_in_journal(journal)


def check_tasks(sources: Mapping[str, States]) -> None:
    """Print the states that each source has, and check that all have the same."""
    say("the tasks and their last states")
    (first, expected), *_ = sources.items()
    for name, states in sources.items():
        counts = ", ".join(f"{n} {state}" for state, n in sorted(Counter(states.values()).items()))
        say(f"  {name}: {len(states)} tasks, {counts}")
        different = {task_id for task_id, _ in states.items() ^ expected.items()}
        if different:
            some = ", ".join(sorted(different)[:3])
            raise StoryError(f"{name} and {first} differ in {len(different)} tasks: {some}")
    say("  they agree: every started task is present once")


def check_changes(client: Client, reader: Reader) -> None:
    """Check that the feed delivered each change of the histories of all tasks, once."""
    numbers = [change.n for change in reader.changes]
    say("the changes")
    say(f"  the feed: changes 0 to {len(numbers) - 1}; {reader.failures} of its requests failed")
    if numbers != list(range(len(numbers))):
        raise StoryError("the feed left out a change, or delivered one twice")
    task_ids = {change.task_id for change in reader.changes}
    events = [event for task_id in task_ids for event in client.history(task_id)]
    say(f"  the histories of the tasks: {len(events)} changes")
    if sorted(event.position or 0 for event in events) != numbers:
        raise StoryError("the histories of the tasks have other changes than the feed")
    say("  they agree: every change was delivered once")


def tell(service: Service, folder: Path, tasks: int) -> None:
    """Record, compare, and raise StoryError if something is missing or there twice."""
    service.start()
    say(f"the service runs at {service.url}")
    reader = Reader(service.url)
    reader.start()
    done = record(service, reader, folder, tasks)
    with contextlib.suppress(StoryError):  # the comparison says what is missing
        wait_for("the feed delivers all", lambda: states_in_feed(reader) == done)
    with Client(service.url) as client:
        check_tasks(
            {
                "the programs": done,
                "the list of the service": states_in_list(client),
                "the export": states_in_export(client, folder / "tasks.ndjson"),
                "the feed": states_in_feed(reader),
            }
        )
        check_changes(client, reader)


def main() -> int:
    """Tell the story, and return 0 if all agree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--tasks",
        type=int,
        default=150,
        help="how many tasks start before each kill and each restart",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="story-") as name:
        service = Service(Path(name))
        try:
            tell(service, Path(name), arguments.tasks)
        except StoryError as error:
            say(f"wrong: {error}")
            return 1
        finally:
            service.stop()
    say("nothing was lost, and nothing is there twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
