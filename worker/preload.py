"""Imported first of all by the forkserver: it ends with the agent, and the ranks end with it."""

from worker.lifeline import die_with_parent

die_with_parent()
