"""--watch: look again and again, and show what has changed.

On a terminal the screen is drawn anew; elsewhere each different report follows the one before. A look that fails is
said once and tried again: a watcher outlives a restart of the API server.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable

from kubectl_shoal import output
from kubectl_shoal.kubectl import Refused


def show(arguments: argparse.Namespace, look: Callable[[], str]) -> None:
    """Once, or until Ctrl-C."""
    if not arguments.watch:
        output.write(look())
        return
    shown, complained = None, ""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                text, complained = look(), ""
            except Refused as refused:
                if shown is None:
                    raise
                text = shown
                if str(refused) != complained:
                    output.note(str(refused))
                complained = str(refused)
            if text != shown:
                output.write((output.CLEAR if sys.stdout.isatty() else "\n" if shown else "") + text)
                shown = text
            time.sleep(arguments.interval)
