"""The processes of `tutelage web --workers N`: one that goes is replaced, one that hangs is killed first.

uvicorn's own supervisor asks a worker whether it is well and waits for the answer.  One that dies meanwhile never gives it, and as the
supervisor holds the other end of the pipe open, too, it waits out the whole timeout: no worker takes the place of the dead one, and
SIGTERM is not heard (seen as a stop that took a minute).  Here it never waits: it asks, goes on, and looks for the answer at the next
round, half a second later.
"""

import logging
import time
from socket import socket

from uvicorn.config import Config
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

PATIENCE = 60.0  # seconds without an answer until a worker counts as hung: on a busy machine one is slow, not dead

logger = logging.getLogger("uvicorn.error")


class Workers(Multiprocess):
    """Runs until SIGTERM or SIGINT, or until a worker says that it cannot start (another would fail just so)."""

    def __init__(self, config: Config, sockets: list[socket]):
        super().__init__(config, sockets)
        self.asked: dict[Process, float] = {}  # since when a worker owes an answer
        self.served: set[Process] = set()  # those that said they had started

    def keep_subprocess_alive(self) -> None:
        for at, worker in enumerate(self.processes):
            if worker.process.is_alive() and not self._hangs(worker):
                continue
            worker.kill()
            worker.join()
            if worker.exitcode > 0 and worker not in self.served:  # below 0: a signal killed it
                logger.error("A worker ended with code %s before it served; the server stops.", worker.exitcode)
                self.should_exit.set()
                return
            self.asked.pop(worker, None)
            self.served.discard(worker)
            logger.warning("Worker %s is gone; another takes its place.", worker.pid)
            self.processes[at] = Process(self.config, self.sockets)
            self.processes[at].start()

    def _hangs(self, worker: Process) -> bool:
        """Whether it has owed an answer for too long; asks where it owes none."""
        if worker.parent_conn.poll():
            if worker.parent_conn.recv():
                self.served.add(worker)
            self.asked.pop(worker, None)
        if worker not in self.asked:
            worker.parent_conn.send(b"ping")
            self.asked[worker] = time.monotonic()
        return time.monotonic() - self.asked[worker] > PATIENCE
