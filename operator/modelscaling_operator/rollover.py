"""How the pods of an edited template take the place of those that train.

The new ones start beside the old ones, which train on: an image that is missing, or a request that
no node can meet, stops nothing. Once all of them are warm, a run with a checkpoint volume saves,
ends its old pods and goes on in the new ones: what an image of another release holds in memory may
not be what this one expects. Without a volume the state moves from memory to memory, as in any
other change. Where there is no room for both, the old ones save and make room, if there is where to
save.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import Reason
from modelscaling_operator.breakage import holders
from modelscaling_operator.pod import differ_in_template_alone
from modelscaling_operator.presence import presences
from modelscaling_operator.roles import assign_roles

if TYPE_CHECKING:
    from datetime import datetime

    from modelscaling_operator.observation import Observation, Pod
    from modelscaling_operator.roles import Roles
    from modelscaling_operator.wish import Wish


def outdated_members(wish: Wish, seen: Observation) -> tuple[Pod, ...]:
    """Return the members of the present group that were made from another template."""
    return tuple(pod for pod in seen.members if pod and pod.revision != wish.revision)


def old_pods_stay(wish: Wish, seen: Observation, since: datetime, now: datetime) -> bool:
    """Whether members of another template are to stay until they are relieved; else all pods of
    other templates save and end now. `since` is when their successors began to be awaited.
    """
    group = seen.status.group
    present = presences(seen, now)
    if group is None or group.broken == Reason.TEMPLATE_CHANGED or not holders(seen, present):
        return False
    outdated = outdated_members(wish, seen)
    if not all(differ_in_template_alone(pod.revision, wish.revision) for pod in outdated):
        return False
    if wish.spec.checkpoint is None:
        return True
    roles = assign_roles(wish, seen, present, now)
    if not group.broken and len(roles.able) >= wish.spec.replicas:
        return False
    patience = timedelta(seconds=wish.spec.elastic.patience_seconds)
    return now < since + patience or not _is_without_room(seen, roles)


def _is_without_room(seen: Observation, roles: Roles) -> bool:
    """Whether the cluster has no room, or a quota none left, for pods beside those that train."""
    obstacles = (pod.obstacle for pod in roles.wished)
    return seen.refusal is not None or any(
        obstacle is not None and obstacle.reason is Reason.UNSCHEDULABLE for obstacle in obstacles
    )
