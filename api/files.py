"""The bytes of an output, or where they are."""

from flask import redirect, request, send_file
from werkzeug.wrappers import Response

from api.answers import finished_artifact
from api.services import services
from jobs.errors import NotFound, OutputExpired
from jobs.record import Job


def served(job: Job, index: int, small: bool = False, here: bool = False) -> Response:
    """302 to a signed URL, or the bytes where the storage is a folder, or here: a client that has
    asked for them by POST would not follow. small: of its thumbnail.
    Raises: NotReady, NotFound, OutputExpired."""
    artifact = finished_artifact(job, index)
    key, content_type, etag = artifact.key, artifact.content_type, artifact.sha256
    if small:
        if artifact.thumbnail is None:
            raise NotFound(f"Output {index} of job {job.id} has no thumbnail.")
        key, content_type, etag = artifact.thumbnail, "image/webp", f"{etag}-thumbnail"
    storage = services().storage
    gone = f"Output {index} of job {job.id} is gone from the storage."
    if not storage.has(key):  # behind a link the storage itself would say so, in XML
        raise OutputExpired(gone)
    path = storage.path(key)
    if path is None and here:
        about = {"Content-Length": str(artifact.bytes)}
        return Response(storage.stream(key), mimetype=content_type, headers=about)
    if path is None:
        link = storage.link(key, "HEAD" if request.method == "HEAD" else "GET")
        assert link is not None, "a storage without links is a folder"
        return redirect(link[0], 302)
    said = request.headers.get("Range", "bytes=")
    if not said.startswith("bytes=") or "," in said:
        # A unit that nobody knows is no range, and several may be read over: RFC 9110, 14.2.
        request.environ.pop("HTTP_RANGE")
    try:
        return send_file(path, content_type, conditional=True, etag=etag)
    except FileNotFoundError:
        raise OutputExpired(gone) from None
