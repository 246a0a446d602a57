"""What every test may rely on."""

from __future__ import annotations

import signal

# A shell that runs the tests in the background lets them and their children ignore Ctrl-C, and
# nohup a terminal that closes; some tests send these to commands that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
