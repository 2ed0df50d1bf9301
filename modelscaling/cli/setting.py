"""`--set spec.path=value` and `--shape name=value,…`: fields of a spec on the command line, which
must exist.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml

from modelscaling.api.base import ApiModel
from modelscaling.api.model import ModelSpec
from modelscaling.api.modelscaling import ModelScalingSpec
from modelscaling.cli.error import UsageError

_ROOT = "spec"
_PRESET = "preset"


def with_settings(spec: Mapping[str, Any], settings: list[str]) -> dict[str, Any]:
    """Return the spec with settings such as `spec.training.tokens=64k`; null removes a field.

    Raises:
        UsageError: a setting has no value, its path is no field, or its value is no scalar.
    """
    changed = copy.deepcopy(dict(spec))
    for setting in settings:
        path, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"--set {setting}: has no value; write spec.path=value")
        root, *names = path.split(".")
        if root != _ROOT or not names:
            raise UsageError(f"--set {setting}: {path!r} is not below spec; write spec.path=value")
        _put(changed, names, parse_value(_field_types(names, setting), text, f"--set {setting}"))
    return changed


def parse_shape(text: str, what: str) -> dict[str, object]:
    """Return fields of `spec.model`, such as `layers=2,hiddenSize=64`, but for the preset.

    Raises:
        UsageError: one is no field, or its value is no scalar; `what` names the argument.
    """
    return dict(_shape_field(pair, what) for pair in text.split(","))


def _shape_field(pair: str, what: str) -> tuple[str, object]:
    name, separator, text = pair.partition("=")
    types = field_types(ModelSpec, name)
    if not separator or types is None or name == _PRESET:
        known = [str(info.alias) for info in ModelSpec.model_fields.values()]
        known.remove(_PRESET)
        raise UsageError(f"{what}: {pair!r} is not NAME=VALUE with NAME one of {', '.join(known)}")
    return name, parse_value(types, text, what)


def parse_value(types: list[Any], text: str, what: str) -> object:
    """Return a value as YAML reads it, or the text itself for a field that only takes text.

    Raises:
        UsageError: it is not a scalar; `what` names it.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{what}: {' '.join(str(error).split())}") from None
    if isinstance(value, dict | list):
        raise UsageError(f"{what}: {text!r} is not a scalar; set its fields one by one")
    takes_only_text = str in types and not {int, bool} & set(types)
    return text if takes_only_text and value is not None and not isinstance(value, str) else value


def field_types(model: type[ApiModel], name: str) -> list[Any] | None:
    """Return the types that a field, by its name in YAML, may have; None if there is no such."""
    for info in model.model_fields.values():
        if info.alias == name:
            return list(_alternatives(info.annotation))
    return None


def _field_types(names: list[str], setting: str) -> list[Any]:
    """Return the types of the field at a path below spec."""
    types: list[Any] = [ModelScalingSpec]
    path = _ROOT
    for name in names:
        if any(get_origin(one) is dict for one in types):
            return []  # below an opaque object, such as the pod template, anything may stand
        models = [one for one in types if isinstance(one, type) and issubclass(one, ApiModel)]
        found = [field for model in models if (field := field_types(model, name)) is not None]
        if not found:
            known = [str(info.alias) for model in models for info in model.model_fields.values()]
            expected = f"expected one of {', '.join(known)}" if known else f"{path} has no fields"
            raise UsageError(f"--set {setting}: {name!r} is not a field of {path}; {expected}")
        types = [one for field in found for one in field]
        path = f"{path}.{name}"
    return types


def _alternatives(annotation: Any) -> list[Any]:  # noqa: ANN401 - any type expression
    """Return the members of a union, without what only annotates them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [one for member in get_args(annotation) for one in _alternatives(member)]
    return [annotation]


def _put(level: dict[str, Any], names: list[str], value: object) -> None:
    *parents, last = names
    for parent in parents:
        below = level.get(parent)
        level[parent] = below = dict(below) if isinstance(below, Mapping) else {}
        level = below
    if value is None:
        level.pop(last, None)
    else:
        level[last] = value
