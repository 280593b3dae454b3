"""Tests run the sources, or with ``EDGED_COMPILED=1`` what ``edged compile`` made of them.

This has to be settled before anything imports a module that has a compiled form.
"""

import os

from edged import compiled

os.environ.setdefault("EDGED_COMPILED", "0")
compiled.activate()
