"""Rules of the house that are about the source itself: layout, imports, docstrings, commands that the docs name."""
