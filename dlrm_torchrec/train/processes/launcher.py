"""Ranks end when the torchrun that started them is gone: nobody sees them, and a new run may need their folder."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

GRACE_S = 240.0  # to save and end; a rank whose peers are gone may wait for them for ever
_POLL_S = 0.5

_parent = os.getppid()


def _remember_parent() -> None:
    global _parent  # a fact of the process, which changes in a forked child
    _parent = os.getppid()


os.register_at_fork(after_in_child=_remember_parent)


def end_with_launcher(gone: Callable[[], None]) -> Callable[[], None]:
    """Watch the launcher, if it is torchrun, and return what ends the watch.

    When the launcher is gone, call ``gone`` in another thread, send this process SIGTERM, and SIGKILL after ``GRACE_S``
    seconds. The kernel's own PR_SET_PDEATHSIG would not do: it comes when the thread that started a rank ends, even if
    the launcher lives, and its SIGTERM alone does not end a rank that hangs in a collective operation.
    """
    ended = threading.Event()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_watch, args=(ended, gone), name="launcher", daemon=True).start()
    return ended.set


def _watch(ended: threading.Event, gone: Callable[[], None]) -> None:
    while os.getppid() == _parent:
        if ended.wait(_POLL_S):
            return
    if os.environ.get("LOCAL_RANK") == "0":
        with suppress(OSError):  # whoever read it may be gone as well
            os.write(2, f"torchrun, process {_parent}, is gone; its ranks save and end\n".encode())
    gone()
    os.kill(os.getpid(), signal.SIGTERM)
    if not ended.wait(GRACE_S):
        os.kill(os.getpid(), signal.SIGKILL)
