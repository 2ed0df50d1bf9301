from __future__ import annotations

import pytest
from pydantic import ValidationError

from modelscaling.mesh import Mesh
from modelscaling_trainer.zygote_protocol import (
    Exited,
    Fork,
    Forked,
    ImportFor,
    ZygoteReply,
    ZygoteRequest,
    encode,
    parse_reply,
    parse_request,
)


@pytest.mark.parametrize("request_", [Fork(), ImportFor(mesh=Mesh(tensor=2))])
def test_a_request_is_one_line_and_comes_back(request_: ZygoteRequest) -> None:
    line = encode(request_)

    assert line.count(b"\n") == 1
    assert parse_request(line) == request_


@pytest.mark.parametrize("reply", [Forked(pid=4242), Exited(pid=4242, code=-9)])
def test_a_reply_is_one_line_and_comes_back(reply: ZygoteReply) -> None:
    line = encode(reply)

    assert line.count(b"\n") == 1
    assert parse_reply(line) == reply


def test_what_is_no_reply_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind"):
        parse_reply(encode(Fork()))
