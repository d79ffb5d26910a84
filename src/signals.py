"""Signal handlers for the length of a block."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def handled(handler, *numbers):
    """In the block these signals call handler(number, frame), or do what signal.SIG_DFL does. Yields the numbers: none in
    another thread than the main one, where Python admits no handlers."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if main}
    try:
        yield list(before)
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)
