"""What the recorder needs of a client: JSON texts go in, problems come out."""

from __future__ import annotations

from collections.abc import Sequence

from audit.client import calls
from audit.client.sync import Client


class Transport:
    """Sends what is ready to be sent to one service."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def record(self, bodies: Sequence[str]) -> None:
        """Record new tasks, all or none.

        Raises:
            Problem: the service refuses one of them, or cannot be reached.
        """
        text = f"[{','.join(bodies)}]"
        self._client.record_json(text.encode(), [f"task {at}: " for at in range(len(bodies))])

    def change(self, task_id: str, body: str) -> None:
        """Change a task.

        Raises:
            Problem: the service refuses the change, or cannot be reached.
        """
        self._client.send(calls.update_text(task_id, body.encode()))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def connect(
    url: str | None, key: str | None, profile: str | None, *, insecure: bool, tries: int = 5
) -> Transport:
    """Return a transport to a service, see `Client`."""
    return Transport(Client(url, key=key, profile=profile, insecure=insecure, tries=tries))
