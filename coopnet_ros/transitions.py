"""Lifecycle transitions that fail: said, and without harm to the process. rclpy does neither."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from coopnet_core.errors import CoopnetError

_Transition = Callable[[Any, LifecycleState], TransitionCallbackReturn]
"""A method of a lifecycle node: on_configure, on_activate, ..."""


def spoken(transition: _Transition) -> _Transition:
    """Log why a transition fails: rclpy swallows what its callback raises.

    What the user can mend (CoopnetError) leaves the node in the state it had; anything else frees everything.
    """

    @functools.wraps(transition)
    def run(node: LifecycleNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except CoopnetError as error:
            node.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            name = transition.__name__.removeprefix("on_")
            node.get_logger().error(f"The transition {name} failed. {type(error).__name__}: {error}")
            node.get_logger().debug(traceback.format_exc())
            return TransitionCallbackReturn.ERROR

    return run


def refuse_impossible_transitions(node: LifecycleNode) -> None:
    """Answer the request for a transition that the present state does not have: in rclpy 7 it ends the executor."""
    service = node._service_change_state  # rclpy offers no other way in
    change = service.callback

    def answer(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        possible = {label: number for number, label, *_ in node._state_machine.available_transitions}
        wanted = request.transition.label or request.transition.id
        if wanted in possible or wanted in possible.values():
            return change(request, response)
        state = node._state_machine.current_state[1]
        names = ", ".join(f"{label} ({number})" for label, number in possible.items()) or "none"
        node.get_logger().error(
            f"There is no transition {wanted} from the state {state}: nothing is changed. Possible are {names}."
        )
        response.success = False
        return response

    service.callback = answer
