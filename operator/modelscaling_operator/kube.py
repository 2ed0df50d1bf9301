"""The only module that talks to the API server: few verbs, typed errors, a timeout on each call.

Requests go through `kubernetes.aio` for its kubeconfig, its in-cluster token and its connection
pool; its 700 generated models are not loaded. Nothing is retried here: who calls knows whether
the same request may be sent twice, and decides anew from what it sees.

What the operator may do to which objects is `RULES`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from modelscaling.api.modelscaling import API_VERSION, GROUP, PLURAL
from modelscaling_operator.identity import FIELD_MANAGER

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST_TIMEOUT_S = 20.0
_APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind of object, as the API server's paths name it."""

    prefix: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of an object, or of all in the namespace."""
        path = f"/{self.prefix}/namespaces/{namespace}/{self.plural}"
        return f"{path}/{name}" if name else path


RUNS = Resource(prefix=f"apis/{API_VERSION}", plural=PLURAL)
PODS = Resource(prefix="api/v1", plural="pods")
SERVICES = Resource(prefix="api/v1", plural="services")
CONFIG_MAPS = Resource(prefix="api/v1", plural="configmaps")
SECRETS = Resource(prefix="api/v1", plural="secrets")
EVENTS = Resource(prefix="api/v1", plural="events")
LEASES = Resource(prefix="apis/coordination.k8s.io/v1", plural="leases")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the operator may do to a kind of object."""

    group: str
    resource: str
    verbs: tuple[str, ...]


RULES = (
    # The finalizer, the end of the time to live.
    Rule(group=GROUP, resource=PLURAL, verbs=("get", "list", "watch", "patch", "delete")),
    Rule(group=GROUP, resource=f"{PLURAL}/status", verbs=("patch",)),
    # Owner references that block deletion, where the cluster asks for the right to.
    Rule(group=GROUP, resource=f"{PLURAL}/finalizers", verbs=("update",)),
    Rule(group="", resource="pods", verbs=("get", "list", "watch", "create", "patch", "delete")),
    Rule(group="", resource="services", verbs=("get", "create", "patch")),
    Rule(group="", resource="configmaps", verbs=("get", "create", "patch")),
    Rule(group="", resource="secrets", verbs=("get", "create", "patch")),
    Rule(group="", resource="events", verbs=("create",)),
)
"""Rights in every namespace that is served."""

LEASE_RULES = (
    Rule(group="coordination.k8s.io", resource="leases", verbs=("get", "create", "update")),
)
"""Rights in the operator's own namespace."""


class KubeError(Exception):
    """The API server did not do what it was asked."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds that the server asks to wait."""


class NotFoundError(KubeError):
    """The object does not exist."""


class ConflictError(KubeError):
    """The object exists already, or is another one than was expected."""


class InvalidError(KubeError):
    """The object is not valid; sending it again is pointless."""


class ForbiddenError(KubeError):
    """A right is missing, or an admission rule or a quota says no."""


class TooManyError(KubeError):
    """The server asks for a pause."""


class UnavailableError(KubeError):
    """The server cannot be reached, did not answer in time, or failed."""


_ERRORS: Mapping[int, type[KubeError]] = {
    400: InvalidError,
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    422: InvalidError,
    429: TooManyError,
}

Json = dict[str, Any]


async def load_configuration() -> Configuration:
    """Return how to reach the API server: the pod's own service account, else the kubeconfig."""
    configuration = Configuration()
    configuration.retries = None
    if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


class Kube:
    """A connection to the API server."""

    def __init__(self, configuration: Configuration) -> None:
        self._client = ApiClient(configuration=configuration)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server knows the resource (its CRD is installed and established)."""
        try:
            found = await self._request("GET", f"/{resource.prefix}")
        except NotFoundError:
            return False
        return any(kind["name"] == resource.plural for kind in found["resources"])

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return the newest version of an object."""
        return await self._request("GET", resource.path(namespace, name))

    async def create(self, resource: Resource, body: Json) -> Json:
        """Create an object; a field that the server does not know is an `InvalidError`."""
        path = resource.path(body["metadata"]["namespace"])
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return await self._request("POST", path, query=query, body=body)

    async def apply(self, resource: Resource, body: Json, *, subresource: str = "") -> Json:
        """Apply what the operator says of an object, over what others say of the same fields.

        With `metadata.resourceVersion` in `body`, an object that has changed since then is a
        `ConflictError`.
        """
        metadata = body["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        path = f"{path}/{subresource}" if subresource else path
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._request("PATCH", path, query=query, body=body, content_type=_APPLY)

    async def replace(self, resource: Resource, body: Json) -> Json:
        """Replace an object, which must be of the version that `body` names."""
        metadata = body["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("PUT", path, query=query, body=body)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str,
        grace_period_s: int | None = None,
    ) -> None:
        """Delete an object if it still is the one with this UID; its own objects follow."""
        body: Json = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        if grace_period_s is not None:
            body["gracePeriodSeconds"] = grace_period_s
        await self._request("DELETE", resource.path(namespace, name), body=body)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:
        try:
            # This reads the token anew from time to time, which may fail as well.
            verb, url, headers, content, form = await self._client.param_serialize(
                method=method,
                resource_path=path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._client.call_api(
                verb, url, headers, content, form, _request_timeout=REQUEST_TIMEOUT_S
            )
            data = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(
                f"{method} {path}: the API server does not answer: {error!r}"
            ) from error
        if response.status >= 400:  # noqa: PLR2004 - HTTP's border to errors
            raise _error(method, path, response.status, data, response.headers.get("Retry-After"))
        return _parse_answer(method, path, data)


def _parse_answer(method: str, path: str, data: bytes) -> Json:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        text = data[:200].decode(errors="replace")
        raise UnavailableError(f"{method} {path}: what answers is not the API server: {text!r}")
    return answer


def _error(method: str, path: str, status: int, data: bytes, retry_after: str | None) -> KubeError:
    """Return the error that an answer stands for, in the API server's words."""
    kind = _ERRORS.get(status, UnavailableError)
    try:
        message = json.loads(data)["message"]
    except (ValueError, KeyError, TypeError):
        message = data[:200].decode(errors="replace")
    wait_s = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return kind(f"{method} {path}: {status}: {message}", retry_after_s=wait_s)


def server_message(error: KubeError) -> str:
    """Return only what the API server said, without the request."""
    return str(error).split(": ", 2)[-1]
