"""How other pods take the place of those that train, where the spec says something else of them:
another template, volume, or number of processes.

The new ones start beside the old ones, which train on: an image that is missing, or a request that
no node can meet, stops nothing. Once all of them are warm the state moves from memory to memory, as
in any other change. Only where the template is another one, and the volume is not, the run saves,
ends its old pods and goes on in the new ones: what an image of another release holds in memory may
not be what this one expects. While saves fail they train on, as the steps since the last one that
did not would be lost. No old pod makes room: whether its place would do for a new one, only the
scheduler knows, and a run that trains is not stopped for a guess. Nor do the old pods wait for the
new ones when the group loses one: it is formed again of those that are left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.api.conditions import Reason
from modelscaling_operator.breakage import holders
from modelscaling_operator.ledger import owes_entry
from modelscaling_operator.pod import have_same_template, save_to_same_volume
from modelscaling_operator.presence import presences
from modelscaling_operator.roles import assign_roles

if TYPE_CHECKING:
    from datetime import datetime

    from modelscaling_operator.observation import Observation, Pod
    from modelscaling_operator.wish import Wish


def outdated_members(wish: Wish, seen: Observation) -> tuple[Pod, ...]:
    """Return the members of the present group of which the spec says something else by now."""
    return tuple(pod for pod in seen.members if pod and pod.revision != wish.revision)


def old_pods_stay(wish: Wish, seen: Observation, now: datetime) -> bool:
    """Whether outdated members are to stay until they are relieved; else all outdated pods save and
    end now.
    """
    group = seen.status.group
    if group is None or group.broken == Reason.TEMPLATE_CHANGED:
        return False
    present = presences(seen, now)
    roles = assign_roles(wish, seen, present, now)
    if not holders(seen, present) and not roles.outdated:
        return False
    if wish.spec.checkpoint is None or not _has_other_template_alone(wish, seen):
        return True
    if waits_for_save(wish, seen):
        return True
    # One that changes and has not trained since holds what it cannot save yet.
    is_changing = group.stopped_mesh is not None and not group.trained
    awaits_more = bool(group.broken) or len(roles.able) < wish.spec.replicas
    return is_changing or owes_entry(group, now) or awaits_more


def waits_for_save(wish: Wish, seen: Observation) -> bool:
    """Whether pods of another template do not take the place of those that train before a save has
    succeeded: the last one failed.
    """
    group, progress = seen.status.group, seen.status.progress
    if group is None or group.broken or wish.spec.checkpoint is None:
        return False
    is_failing = progress is not None and progress.checkpoint_failure is not None
    return is_failing and _has_other_template_alone(wish, seen)


def _has_other_template_alone(wish: Wish, seen: Observation) -> bool:
    """Whether the members are of another template, and save to where the new pods look."""
    outdated = outdated_members(wish, seen)
    return any(not have_same_template(pod.revision, wish.revision) for pod in outdated) and all(
        save_to_same_volume(pod.revision, wish.revision) for pod in outdated
    )
