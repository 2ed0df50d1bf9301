"""Strategic merge of a pod template, as `kubectl patch` does it.

Maps are merged by key, null removes a key, and a list is merged by its merge key where Kubernetes
declares one, else replaced. The declared keys are those of `x-kubernetes-patch-merge-key` in the
OpenAPI of Kubernetes 1.37 that lie below a pod template. The directives `$patch` (merge, replace,
delete) and `$retainKeys` are understood; others belong to generated patches and are refused.
"""

from __future__ import annotations

from typing import Any

_CONTAINER_LISTS = {
    "env": "name",
    "ports": "containerPort",
    "volumeDevices": "devicePath",
    "volumeMounts": "mountPath",
}
_SPEC_LISTS = {
    "containers": "name",
    "ephemeralContainers": "name",
    "hostAliases": "ip",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "topologySpreadConstraints": "topologyKey",
    "volumes": "name",
}
_MERGE_KEYS: dict[tuple[str, ...], str] = {
    **{("spec", name): key for name, key in _SPEC_LISTS.items()},
    **{
        ("spec", containers, name): key
        for containers in ("containers", "ephemeralContainers", "initContainers")
        for name, key in _CONTAINER_LISTS.items()
    },
}
_DIRECTIVES = frozenset({"$patch", "$retainKeys"})


class TemplateError(ValueError):
    """A template that cannot be merged; the message names the field and the fix."""


def merge_template(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return the pod template `base` with the strategic merge patch `patch` applied.

    Raises:
        TemplateError: the patch has another structure than a pod template.
    """
    merged: dict[str, Any] = _merged_map(base, patch, ())
    return merged


def _merged_map(base: dict[str, Any], patch: dict[str, Any], path: tuple[str, ...]) -> Any:  # noqa: ANN401
    unknown = {key for key in patch if key.startswith("$")} - _DIRECTIVES
    if unknown:
        raise TemplateError(
            f"{_where(path)} has the directive {min(unknown)}; only $patch and $retainKeys are "
            f"understood"
        )
    directive = patch.get("$patch", "merge")
    content = {key: value for key, value in patch.items() if key not in _DIRECTIVES}
    match directive:
        case "replace":
            return content
        case "delete":
            return {}
        case "merge":
            pass
        case _:
            raise TemplateError(
                f"{_where(path)}.$patch={directive!r} is not one of merge, replace, delete"
            )
    result = _retained(base, patch, path)
    for key, value in content.items():
        _merge_field(result, key, value, (*path, key))
    return result


def _retained(base: dict[str, Any], patch: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return `base`, without what `$retainKeys` leaves out."""
    kept = patch.get("$retainKeys")
    if kept is None:
        return dict(base)
    if not isinstance(kept, list):
        raise TemplateError(f"{_where(path)}.$retainKeys={kept!r} must be a list of field names")
    return {key: value for key, value in base.items() if key in kept}


def _merge_field(result: dict[str, Any], key: str, value: Any, path: tuple[str, ...]) -> None:  # noqa: ANN401
    if value is None:
        result.pop(key, None)
        return
    present = result.get(key)
    merge_key = _MERGE_KEYS.get(path)
    if merge_key is not None:
        result[key] = _merged_list(present or [], value, merge_key, path)
    elif isinstance(value, dict) and isinstance(present, dict):
        result[key] = _merged_map(present, value, path)
    elif present is not None and type(value) is not type(present):
        raise TemplateError(
            f"{_where(path)}={value!r} must be {_kind(present)}, as in a pod template"
        )
    elif isinstance(value, dict):
        result[key] = _merged_map({}, value, path)
    else:
        result[key] = value


def _merged_list(base: list[Any], patch: Any, merge_key: str, path: tuple[str, ...]) -> list[Any]:  # noqa: ANN401
    if not isinstance(patch, list):
        raise TemplateError(f"{_where(path)}={patch!r} must be a list")
    if any(isinstance(item, dict) and item == {"$patch": "replace"} for item in patch):
        return [item for item in patch if item != {"$patch": "replace"}]
    merged: dict[Any, Any] = {}
    deleted = set()
    known = {item[merge_key]: item for item in base}
    for item in patch:
        if not isinstance(item, dict) or merge_key not in item:
            raise TemplateError(
                f"{_where(path)} has the item {item!r} without {merge_key}, which tells the items "
                f"apart; set it"
            )
        key = item[merge_key]
        if item.get("$patch") == "delete":
            deleted.add(key)
        else:
            merged[key] = _merged_map(known.get(key, {}), item, path)
    untouched = [item for key, item in known.items() if key not in merged and key not in deleted]
    return _interleaved(list(merged.values()), untouched, list(known), merge_key)


def _interleaved(
    patched: list[Any], untouched: list[Any], order: list[Any], merge_key: str
) -> list[Any]:
    """Return both lists as one, as the API server orders them: items that were there keep their
    order among each other, new ones come before the next that the patch does not name.
    """
    result = []
    rest = list(untouched)
    for item in patched:
        key = item[merge_key]
        while rest and key in order and order.index(rest[0][merge_key]) < order.index(key):
            result.append(rest.pop(0))
        result.append(item)
    return result + rest


def _where(path: tuple[str, ...]) -> str:
    return ".".join(("spec.template", *path))


def _kind(value: object) -> str:
    names = {dict: "a map", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "a number")
