"""The stages and commands of the project, each run by `python -m stages.NAME`."""

from __future__ import annotations

import sys

if sys.argv[0] == "-m":  # Python is looking for NAME, and nothing that takes long has been imported
    from stages.common import terminal

    terminal.set_up()
