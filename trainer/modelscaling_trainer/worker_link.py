"""A worker's end of the pipes to its agent.

A thread of its own reads the commands, so that a request reaches a group in training, and so that
a worker whose agent is gone ends, whatever its main thread is doing.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from pydantic import ValidationError

from modelscaling_trainer.parallel import imports
from modelscaling_trainer.request import Requests
from modelscaling_trainer.worker_protocol import (
    Abandon,
    Ask,
    Join,
    Prepare,
    encode,
    parse_command,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelscaling_trainer.worker_protocol import Event

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOrder:
    """A group to join, and where what is asked of that group arrives."""

    join: Join
    requests: Requests

    def is_about(self, command: Ask | Abandon) -> bool:
        """Whether a command is meant for this group."""
        mine = (self.join.generation, self.join.attempt)
        return (command.generation, command.attempt) == mine


class AgentLink:
    """Commands in, events out; safe to use from any thread."""

    def __init__(
        self, *, commands: BinaryIO, events: BinaryIO, on_agent_gone: Callable[[], None]
    ) -> None:
        """Take both pipes; `on_agent_gone` is called, from any thread, when one has closed."""
        self._commands = commands
        self._events = events
        self._on_agent_gone = on_agent_gone
        self._orders: queue.SimpleQueue[Prepare | JoinOrder] = queue.SimpleQueue()
        self._send_lock = threading.Lock()

    def start(self) -> None:
        """Begin to read commands."""
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def send(self, event: Event) -> None:
        """Tell the agent."""
        line = encode(event)
        try:
            with self._send_lock:
                self._events.write(line)
                self._events.flush()
        except OSError:
            self._on_agent_gone()

    def next_order(self) -> Prepare | JoinOrder:
        """Wait for the next thing to do."""
        return self._orders.get()

    def _read(self) -> None:
        try:
            self._read_commands()
        except (OSError, ValidationError):
            _log.exception("a command cannot be read")
        self._on_agent_gone()

    def _read_commands(self) -> None:
        newest: JoinOrder | None = None
        for line in self._commands:
            match parse_command(line):
                case Prepare() as prepare:
                    self._orders.put(prepare)
                case Join() as join:
                    # Made here and not where the group is formed: a request that comes right
                    # behind the command must not be lost.
                    newest = JoinOrder(join=join, requests=Requests())
                    self._orders.put(newest)
                case Ask() as ask if newest and newest.is_about(ask):
                    # In a thread of its own: nothing may hold an Abandon back.
                    threading.Thread(
                        target=_ask, args=(ask, newest.requests), name="ask", daemon=True
                    ).start()
                case Abandon(why=why) as abandon if newest and newest.is_about(abandon):
                    newest.requests.abandon(why)


def _ask(ask: Ask, requests: Requests) -> None:
    """Pass a request on once the process has imported what follows it: the group trains on so
    long.
    """
    if ask.mesh is not None:
        imports.import_for(ask.mesh)
    requests.ask(ask.request)
