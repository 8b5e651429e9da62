"""Declares the table of `parameters` on a node, reads it back and judges changes."""

from __future__ import annotations

from collections.abc import Iterable

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, ParameterType, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from coopnet_core.errors import UsageError
from coopnet_ros.parameters import (
    PARAMETERS,
    ParameterSpec,
    ParameterValue,
    combination_refusal,
    nearest_hint,
    spec_of,
)

_TYPES = {
    "bool": ParameterType.PARAMETER_BOOL,
    "int": ParameterType.PARAMETER_INTEGER,
    "double": ParameterType.PARAMETER_DOUBLE,
    "string": ParameterType.PARAMETER_STRING,
    "double_array": ParameterType.PARAMETER_DOUBLE_ARRAY,
}
_OF_RCLPY = ("use_sim_time", "start_type_description_service", "qos_overrides.")
"""Beginnings of the parameters that every node has."""


def describe(spec: ParameterSpec) -> ParameterDescriptor:
    """The descriptor that `ros2 param describe` shows."""
    descriptor = ParameterDescriptor(
        name=spec.name,
        type=_TYPES[spec.type_name],
        description=spec.description,
        additional_constraints=spec.constraint,
        read_only=spec.read_only,
    )
    if spec.minimum is not None and spec.maximum is not None:
        if spec.type_name == "double":
            descriptor.floating_point_range = [FloatingPointRange(from_value=spec.minimum, to_value=spec.maximum)]
        elif spec.type_name == "int":
            descriptor.integer_range = [IntegerRange(from_value=int(spec.minimum), to_value=int(spec.maximum), step=1)]
    return descriptor


def declare(node: Node) -> list[str]:
    """Declare all parameters on the node and judge later changes by the same table.

    Returns:
        Warnings: names given at start that no parameter has. They are no errors, since one file may serve many nodes.

    Raises:
        UsageError: a value given at start is refused.
    """
    given = node._parameter_overrides  # rclpy names them nowhere else
    for spec in PARAMETERS:
        if spec.name in given:
            given[spec.name] = _as_declared(given[spec.name], spec)
        default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
        try:
            node.declare_parameter(spec.name, default, describe(spec))
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            expected = f"a {spec.type_name}" + (f", {spec.constraint}" if spec.constraint else "")
            raise UsageError(f"Parameter {spec.name}: {expected} was expected. {error}") from error
    values = read(node)
    for name, value in values.items():
        reason = spec_of(name).refusal(value)
        if reason:
            raise UsageError(reason + ".")
    reason = combination_refusal(values)
    if reason:
        raise UsageError(reason + ".")
    node.add_on_set_parameters_callback(lambda changes: judge(node, changes))
    known = {spec.name for spec in PARAMETERS}
    unknown = [name for name in given if name not in known and not name.startswith(_OF_RCLPY)]
    return [f"There is no parameter {name!r}: it is ignored.{nearest_hint(name)}" for name in unknown]


def _as_declared(given: Parameter, spec: ParameterSpec) -> Parameter:
    """Whole numbers for a double, as people type them: `scale:=2`."""
    if spec.type_name == "double" and type(given.value) is int:
        return Parameter(given.name, value=float(given.value))
    if spec.type_name == "double_array" and given.type_ is Parameter.Type.INTEGER_ARRAY:
        return Parameter(given.name, value=[float(number) for number in given.value])
    return given


def read(node: Node) -> dict[str, ParameterValue]:
    """The present value of every declared parameter, by name (lists as tuples)."""
    return {spec.name: _as_value(node.get_parameter(spec.name).value) for spec in PARAMETERS}


def judge(node: Node, changes: Iterable[Parameter]) -> SetParametersResult:
    """Whether these changes are accepted; the reason says what was expected."""
    values = read(node)
    for change in changes:
        if change.name not in values:
            continue
        spec, value = spec_of(change.name), _as_value(change.value)
        reason = spec.refusal(value)
        if reason:
            return SetParametersResult(successful=False, reason=reason)
        values[change.name] = value
    reason = combination_refusal(values)
    return SetParametersResult(successful=reason is None, reason=reason or "")


def _as_value(value: object) -> ParameterValue:
    """Lists and arrays as tuples, the rest as it is."""
    return value if isinstance(value, (bool, int, float, str)) else tuple(value)
