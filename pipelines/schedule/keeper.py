"""Keeps a lease that was taken: shows that its holder is alive, and notices when it is gone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

_BEATS = 3
"""Beats within the seconds after which a silent holder is taken for dead."""
_SILENCE = 0.8
"""Part of those seconds without a beat after which the holder itself gives up, before others may take over."""
_PARTING = 5.0
"""Seconds to wait until the lease is given back. A store that is out of reach takes longer to say so."""

HELD, RELEASED = b"held", b"released"
"""What is in a beat."""


class Keeper:
    """Beats until it ends, or until the lease is lost: then ``lost`` is called, once.

    A call to a store that is out of reach comes back long after the lease has expired. So there are two threads, of
    which one calls and the other watches the time; both are daemons, since the process need not wait for them.

    Args:
        seconds: of silence after which the lease expires.
        heard: when the lease was taken, by the monotonic clock.
        gone: whether the lease is another one's, or none; may raise.
        beat: puts a beat in the store; may raise.
    """

    def __init__(
        self, seconds: float, heard: float, gone: Callable[[], bool], beat: Callable[[bytes], None],
        lost: Callable[[], None],
    ) -> None:  # fmt: skip
        self._seconds, self._gone, self._beat, self._lost = seconds, gone, beat, lost
        self._heard = heard
        """When the last beat that got through was sent: the store's time of it is no earlier."""
        self._over = threading.Event()
        self._kept = True
        self._guard = threading.Lock()
        self._beating = threading.Thread(target=self._beats, daemon=True)
        self._beating.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """Give the lease back, if it was not lost. If that does not get through it expires by itself."""
        self._over.set()
        self._beating.join(_PARTING)

    def _beats(self) -> None:
        while True:
            gone = False
            with contextlib.suppress(Exception):  # whatever it was, nobody has heard this beat; ``_watch`` counts
                # Before every beat: this host may have slept for hours, which its clock need not show.
                gone = self._gone()
                if not gone:
                    sent = time.monotonic()
                    self._beat(HELD)
                    self._heard = sent
            if gone:
                self._lose()
            if self._over.wait(self._seconds / _BEATS):
                break
        if self._kept:
            with contextlib.suppress(Exception):
                self._beat(RELEASED)  # from this thread, so that no other beat comes after it

    def _watch(self) -> None:
        while not self._over.wait(self._heard + _SILENCE * self._seconds - time.monotonic()):
            if time.monotonic() - self._heard >= _SILENCE * self._seconds:
                self._lose()

    def _lose(self) -> None:
        with self._guard:  # both threads may come here
            if self._over.is_set():
                return
            self._kept = False
            self._over.set()
        self._lost()
