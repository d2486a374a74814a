"""The steps of explaining a request: every router is asked, as tries under one id may have gone to several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fairlead.errors import DeadlineExceededError, FairleadError, InvalidArgumentError, NotFoundError
from fairlead.inference.v1 import decision_pb2
from fairlead.sdk.decisions import Explanation, explanation_from
from fairlead.sdk.steps import Send, UnarySteps
from fairlead.sdk.transport import Outgoing
from fairlead.sdk.wording import worded_for_caller

ROUTER_TIMEOUT_S: Final = 5.0
"""Longest wait for one router, seconds; it may ask others in that time."""


def explain(
    request_id: str, addresses: Sequence[str], authorization: tuple[str, str], deadline_s: float | None
) -> UnarySteps[Explanation]:
    """Asks every router for its decisions about a request of the tenant's own.

    Args:
        request_id: The request.
        addresses: host:port of each router, one or more.
        authorization: Metadata with the tenant's key.
        deadline_s: Seconds for each router; None for ROUTER_TIMEOUT_S, which is also the most.

    Raises:
        NotFoundError: Nobody remembers it.
        FairleadError: Nobody could be asked, or the key is refused.
    """
    if not isinstance(request_id, str) or not request_id:
        raise InvalidArgumentError(
            "request_id must be the id of a request, as in its answer or error", field="request_id"
        )
    request = decision_pb2.GetDecisionRequest(request_id=request_id)
    timeout_s = min(deadline_s or ROUTER_TIMEOUT_S, ROUTER_TIMEOUT_S)
    decisions: list[decision_pb2.Decision] = []
    silent: dict[str, FairleadError] = {}
    unheard: list[str] = []
    nothing: NotFoundError | None = None
    for address in addresses:
        try:
            answer = yield Send(Outgoing(address, "GetDecision", request, (authorization,), timeout_s))
        except NotFoundError as error:
            nothing = error
        except FairleadError as error:
            silent[address] = error
        else:
            if not isinstance(answer, decision_pb2.GetDecisionResponse):
                raise TypeError(f"the transport answered GetDecision with {type(answer).__name__}")
            decisions += answer.decisions
            unheard += answer.silent_router_ids
    if decisions:
        return explanation_from(decisions, [*silent, *unheard])
    if nothing is not None:
        missing = f"; {', '.join(silent)} could not be asked and may know it" if silent else ""
        raise NotFoundError(f"{nothing.message}{missing}", reason=nothing.reason, metadata=nothing.metadata)
    address, failure = next(iter(silent.items()))
    if isinstance(failure, DeadlineExceededError):
        raise DeadlineExceededError(f"{address} did not answer within {timeout_s:g} s; try again")
    raise worded_for_caller(failure, address, timeout_s)
