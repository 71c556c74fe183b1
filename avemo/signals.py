"""Signals that ask a process to stop."""

import signal

# SIGUSR1 is how Slurm tells of the end of a job's time, if asked to.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
