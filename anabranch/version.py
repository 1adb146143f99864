"""The program's version."""

from importlib.metadata import version

PROGRAM = version("anabranch")
