"""Imported first of all by the forkserver: it ends with the agent, and the ranks end with it."""

import os

from worker.lifeline import AGENT, die_with_parent

# The agent may be gone by now: a forkserver starts for a while.
die_with_parent(int(os.environ[AGENT]))
