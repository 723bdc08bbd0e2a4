"""/v1/webhooks/secret: what a receiver of webhooks verifies them by."""

from flask import Blueprint, Response, jsonify

from api.auth import need, tenant
from api.services import services
from jobs.errors import NotFound
from jobs.webhooks import DEFAULT, secret_of, written

blueprint = Blueprint("webhooks", __name__, url_prefix="/v1/webhooks")


@blueprint.get("/secret")
def secret() -> Response:
    """What the caller's webhooks are signed with. It is his tenant's own, for a library of Standard
    Webhooks; that of the tenant `default` is the fleet's own, for admins alone."""
    if tenant() == DEFAULT:  # all the others follow from it
        need("admin")
    known = services().settings.webhook_secret
    if known is None:
        raise NotFound("This fleet signs no webhooks: FLEET_WEBHOOK_SECRET is not set.")
    about = {"object": "webhook_secret", "secret": written(secret_of(tenant(), known))}
    response = jsonify(about)
    response.headers["Cache-Control"] = "no-store"
    return response
