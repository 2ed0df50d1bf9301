"""How an agent asks another one of its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from modelscaling.protocol import SIGNATURE_HEADER, sign

if TYPE_CHECKING:
    from modelscaling.protocol import Member


class PeerRequest(NamedTuple):
    """A GET request to another agent."""

    url: str
    headers: dict[str, str]


def peer_request(member: Member, path: str, *, key: bytes) -> PeerRequest:
    """Return the request for a path (with its query), signed with the run's key."""
    host = f"[{member.address}]" if ":" in member.address else member.address
    return PeerRequest(
        url=f"http://{host}:{member.port}{path}",
        headers={SIGNATURE_HEADER: sign(key, method="GET", path=path, body=b"")},
    )
