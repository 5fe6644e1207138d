"""Prints what pyproject.toml asks for: its dependencies, those of the extras named, and what builds the package.

An image installs these in a layer of their own, which a change of our code leaves alone.
"""

import sys
import tomllib
from pathlib import Path

settings = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
extras = settings["project"]["optional-dependencies"]
wanted = [*settings["project"]["dependencies"], *settings["build-system"]["requires"]]
print("\n".join(wanted + [line for extra in filter(None, sys.argv[1:]) for line in extras[extra]]))
