"""What a watcher is told from outside. Imports nothing heavy: a signal may come before JAX does."""

from __future__ import annotations

import signal
import threading


class Signals:
    """Listens from the moment it is made.

    SIGTERM and SIGINT mean: end now. SIGUSR1: training has ended, score what is left and end.
    """

    def __init__(self):
        self.end = threading.Event()
        self.training_ended = False
        signal.signal(signal.SIGTERM, lambda *_: self.end.set())
        signal.signal(signal.SIGINT, lambda *_: self.end.set())
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "training_ended", True))
