"""What the fork server is told. Imported there only, before it forks the first worker: see `workers`."""

import signal

# A supervisor that stops the service sends SIGTERM to all its processes. The service then lets its requests finish;
# without the fork server it would not hear any more how its workers are.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
