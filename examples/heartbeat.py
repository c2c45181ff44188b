"""A function that is called every second, while the app runs.

    squall run examples/heartbeat.py

In a deployed app it would go on until the app is stopped: `squall deploy examples/heartbeat.py`, then
`squall schedule list`.
"""

import time

import squall

app = squall.App("heartbeat")


@app.cls(max_containers=1)
class Book:
    """Notes beats, in the memory of its one container."""

    @squall.enter()
    def open(self) -> None:
        """An empty page."""
        self.calls: set[str] = set()

    @squall.method()
    def note(self, call: str) -> None:
        """One more."""
        self.calls.add(call)

    @squall.method()
    def count(self) -> int:
        """How many calls there were."""
        return len(self.calls)


@app.function(schedule=squall.Period(seconds=1))
def beat(book: str = "the only one") -> None:
    """Scheduled calls have no arguments: parameters need defaults."""
    Book().note.remote(squall.current_function_call_id() or "")


@app.local_entrypoint()
def main() -> None:
    """Wait for three beats."""
    while Book().count.remote() < 3:
        time.sleep(0.5)
    print("3 beats, each in a call of its own")
