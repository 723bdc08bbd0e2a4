"""Which version of this software it is."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("diffusion-fleet")
except PackageNotFoundError:  # a clone that is not installed runs all the same
    VERSION = "0"
