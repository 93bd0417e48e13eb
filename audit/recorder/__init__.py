"""Records the tasks of an orchestrator, which never waits for the network. See docs/recorder.md."""

from __future__ import annotations

from audit.recorder.errors import SpoolError, SpoolFull
from audit.recorder.recorder import Recorder, RecorderStats
from audit.recorder.scope import TaskScope
from audit.recorder.task import RecordedTask

__all__ = ["Recorder", "RecordedTask", "RecorderStats", "SpoolError", "SpoolFull", "TaskScope"]
