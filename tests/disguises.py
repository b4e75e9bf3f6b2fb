"""The forms in which a secret could be printed."""

import base64
from urllib.parse import quote, quote_plus


def disguises(secret: str) -> set[str]:
    """As it is, in base64, as in a URL, as hexadecimal digits."""
    raw = secret.encode()
    return {
        secret,
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(),
        quote(secret, safe=""),
        quote_plus(secret),
        raw.hex(),
    }
