"""What every test may rely on."""

from __future__ import annotations

import signal

# A shell that runs the tests in the background lets them and their children ignore Ctrl-C, which
# some tests send to commands that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
