"""Prints what the named extras of pyproject.toml need, one a line: `python requirements.py service`.

An image installs this before our sources come, so that a change of theirs leaves that layer as it is.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
wanted = [*project["dependencies"]]
for extra in sys.argv[1:]:
    wanted += [one for one in extras[extra] if not one.startswith("srp4ctr[")]
print("\n".join(dict.fromkeys(wanted)))
