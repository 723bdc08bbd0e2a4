"""`python -m cli` is `fleet`."""

from cli.main import fleet

fleet()
