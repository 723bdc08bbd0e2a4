"""The secrets by which webhooks are signed: a tenant has his own, all follow from one."""

import base64
import hashlib
import hmac

DEFAULT = "default"  # a fleet without keys has this tenant alone


def secret_of(tenant: str, secret: bytes) -> bytes:
    """secret: FLEET_WEBHOOK_SECRET, which is the default tenant's own. Who can verify his own
    deliveries can't sign another's with what he knows: HMAC-SHA256 does not lead back."""
    if tenant == DEFAULT:
        return secret
    return hmac.digest(secret, f"webhook:{tenant}".encode(), hashlib.sha256)


def written(secret: bytes) -> str:
    """As Standard Webhooks writes one, and its libraries read it."""
    return f"whsec_{base64.b64encode(secret).decode()}"
