"""The few requests to the API server that starting needs, as its administrator."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from devcluster.errors import ClusterError
from devcluster.layout import API_ADDRESS, API_PORT
from devcluster.pki import ADMIN, authority, certificate

if TYPE_CHECKING:
    from devcluster.layout import Layout

_TIMEOUT_S = 10
_OK = 200
_NOT_FOUND = 404
_FIELD_MANAGER = "devcluster"


class Api:
    """The API server of a checkout's cluster."""

    def __init__(self, layout: Layout) -> None:
        self._tls = ssl.create_default_context(cafile=authority(layout))
        self._tls.load_cert_chain(certificate(layout, ADMIN))

    def is_ready(self) -> bool:
        """Whether it answers and says that it is ready."""
        try:
            return self._request("GET", "/readyz")[0] == _OK
        except OSError:
            return False

    def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Return the objects of a list."""
        answer = self._json("GET", f"{path}?{urlencode(query)}")
        items: list[dict[str, Any]] = answer["items"]
        return items

    def get(self, path: str) -> dict[str, Any]:
        """Return an object; empty if there is none."""
        return self._json("GET", path, absent_is_fine=True)

    def apply(self, path: str, content: dict[str, Any]) -> None:
        """Create an object or make it so (server-side apply); `path` is of the list."""
        query = urlencode({"fieldManager": _FIELD_MANAGER, "force": "true"})
        name = content["metadata"]["name"]
        self._json("PATCH", f"{path}/{name}?{query}", content)

    def delete(self, path: str) -> None:
        """Delete an object if there is one."""
        self._json("DELETE", path, absent_is_fine=True)

    def _json(
        self,
        method: str,
        path: str,
        content: dict[str, Any] | None = None,
        *,
        absent_is_fine: bool = False,
    ) -> dict[str, Any]:
        try:
            status, body = self._request(method, path, content)
        except OSError as error:
            raise ClusterError(f"the API server does not answer: {error}; run `up`") from error
        if status == _NOT_FOUND and absent_is_fine:
            return {}
        if status >= http.client.BAD_REQUEST:
            raise ClusterError(f"{method} {path}: {status} {body.decode(errors='replace')[:500]}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def _request(
        self, method: str, path: str, content: dict[str, Any] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(
            API_ADDRESS, API_PORT, timeout=_TIMEOUT_S, context=self._tls
        )
        try:
            body = None if content is None else json.dumps(content)
            headers = {"Content-Type": "application/apply-patch+yaml"} if body else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            # A server that is just being killed: the same as one that is not there.
            raise OSError(str(error)) from error
        finally:
            connection.close()
