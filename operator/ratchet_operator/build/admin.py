"""The Secret with the token that a PolicyDeployment's servers take orders by."""

from ratchet_operator.build.context import identity
from ratchet_operator.kinds import SECRET, Json

TOKEN_KEY = "token"  # noqa: S105 - the key of a Secret


def admin_secret(namespace: str, name: str, labels: dict[str, str], owner: Json, token: str) -> Json:
    """`<name>-admin`. Only the executor calls this, with the token that belongs to the PolicyDeployment."""
    obj = identity(SECRET, namespace, name, labels, owner)
    return {**obj, "type": "Opaque", "stringData": {TOKEN_KEY: token}}
