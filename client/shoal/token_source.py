"""Where this process' token comes from, asked for with each new connection to a node elsewhere.

A file that somebody else keeps fresh, where one is named; else the node at home, if this process is connected to its
own socket and may do everything there.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shoal_core.errors import Forbidden, ShoalError
from shoal_core.verbs import token

if TYPE_CHECKING:
    from shoal.session import Session

_ASK_S = 1.0
_FRESH_S = 20.0
"""A token of a node lives for a minute."""
_AGAIN_S = 1.0
"""A node that gave none is not asked for so long."""


class TokenSource:
    """Called, it gives the token as it is now; "" where there is none."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.home: Session | None = None
        """To the node that is asked where there is no file."""
        self._lock = threading.Lock()
        self._given = ""
        self._until = 0.0

    def __call__(self) -> str:
        """Forbidden when the file cannot be read: without it no node would answer."""
        if self.path is None:
            return self._of_home()
        try:
            return Path(self.path).read_text("ascii").strip()
        except OSError as error:
            raise Forbidden(f"token file {self.path}: {error.strerror or error}") from error
        except ValueError:
            raise Forbidden(f"token file {self.path}: holds no token") from None

    def reset_after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def _of_home(self) -> str:
        home = self.home
        if home is None or not home.is_local:
            return ""
        with self._lock:
            now = time.monotonic()
            if now >= self._until:
                try:
                    self._given = home.call(token.KIND, token.Request(), now + _ASK_S).token
                    self._until = now + _FRESH_S
                except ShoalError:  # it does not know the verb, does not give it to us, or is going
                    self._given = ""
                    self._until = now + _AGAIN_S
            return self._given
