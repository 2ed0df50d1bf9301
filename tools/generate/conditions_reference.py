"""The reference of conditions and reasons, from the sentences beside them in the code."""

from __future__ import annotations

from modelscaling.api.conditions import ConditionType, Reason
from tools.generate.markdown import GENERATED, code, table

_INTRODUCTION = """# Conditions of a ModelScaling

`kubectl describe msc NAME` shows them with a message;
`kubectl wait --for=condition=Complete msc/NAME` waits for one.
"""


def render() -> str:
    """Return `docs/reference/conditions.md`."""
    return "\n".join(
        [
            GENERATED,
            _INTRODUCTION,
            *table(("Condition", "Meaning"), [(code(c), c.sentence) for c in ConditionType]),
            "## Reasons\n",
            *table(("Reason", "Meaning"), [(code(r), r.sentence) for r in Reason]),
        ]
    )
