"""What the demo does to its run while it trains: each change at a step, as a user would make it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One command of kubectl, and from which step on it is given."""

    step: int
    arguments: tuple[str, ...]

    def is_due(self, status: Mapping[str, Any]) -> bool:
        """Whether the run has come to the step, with no other change under way."""
        step = status.get("progress", {}).get("step", 0)
        return step >= self.step and status.get("state") == "Running" and _is_whole(status)


def _is_whole(status: Mapping[str, Any]) -> bool:
    """Whether the group that is planned trains: after a loss a smaller one does for a while."""
    group, plan = status.get("group", {}), status.get("plan", {})
    return bool(group.get("trained")) and group.get("mesh") == plan.get("mesh")


def changes_of(name: str) -> tuple[Change, ...]:
    """Return the demo's changes: one more pod, another strategy with yet one more, and a pod lost,
    all of whose state another has too.
    """
    hybrid = {"replicas": 4, "parallelism": {"strategy": "Custom", "dataReplicate": 2}}
    patch = json.dumps({"spec": hybrid})
    return (
        Change(step=50, arguments=("scale", f"modelscaling/{name}", "--replicas=3")),
        Change(
            step=110,
            arguments=("patch", "modelscaling", name, "--type=merge", f"--patch={patch}"),
        ),
        Change(step=170, arguments=("delete", "pod", f"{name}-1", "--grace-period=0", "--force")),
    )


def ledger(status: Mapping[str, Any]) -> str:
    """Return `status.rescales` as a table."""
    rows = [("FROM", "TO", "CAUSE", "STEP", "DOWNTIME", "LOST STEPS", "LOSS BEFORE", "AFTER")]
    rows += [
        (
            record["from"],
            record["to"],
            record["cause"],
            str(record.get("step", "")),
            f"{record['downtimeSeconds']} s",
            str(record["lostSteps"]),
            record.get("lossBefore", "-"),
            record.get("lossAfter", "-"),
        )
        for record in status.get("rescales", [])
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        + "\n"
        for row in rows
    )
