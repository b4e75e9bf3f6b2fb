"""The tokens by which policy servers take orders: each PolicyDeployment has its own, made from one key.

So the operator knows them all and reads no Secret in a user's namespace.
"""

import hashlib
import hmac
from pathlib import Path


class NoAdminKeyError(Exception):
    """There is no key, or none that is any good; the message says what to do."""


class AdminKey:
    """The installation's key.

    Args:
        file: where the chart mounts it; empty for an operator that gives no orders.

    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._key = b""

    def token(self, uid: str) -> str:
        """The token of the PolicyDeployment with this UID.

        Raises:
            NoAdminKeyError: the key can't be read.

        """
        if not self._key:
            self._key = self._read()
        return hmac.new(self._key, uid.encode(), hashlib.sha256).hexdigest()

    def _read(self) -> bytes:
        if not self._file:
            raise NoAdminKeyError("no key for the servers' tokens: set RATCHET_ADMIN_KEY_FILE")
        try:
            key = Path(self._file).read_bytes().strip()
        except OSError as error:
            raise NoAdminKeyError(
                f"RATCHET_ADMIN_KEY_FILE={self._file} can't be read: {error.strerror}"
            ) from error
        if len(key) < 32:
            raise NoAdminKeyError(
                f"RATCHET_ADMIN_KEY_FILE={self._file} holds fewer than 32 characters: write random ones"
            )
        return key
