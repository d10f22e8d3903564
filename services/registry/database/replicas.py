"""The replica state machine: the only code that changes Replica.state.

states.ReplicaState describes the machine. `transition` checks a transition (pure). `apply` locks the row, checks that the
replica is still in the state that the decision was made on, and changes the row. A decision made on a stale read changes
nothing; the next turn decides again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from services.protocol.messages import new_id
from services.registry.control.backoff import failures_in_a_row, retry_delay_s
from services.registry.control.decisions import (
    CreateReplica,
    DrainReplica,
    ExplainReplica,
    FailReplica,
    FetchModel,
    MeasureReplica,
    ProveReplica,
    ReadyReplica,
    ReplicaDecision,
    StartReplica,
    StopReplica,
)
from services.registry.database.database import transaction_time
from services.registry.database.tables import Deployment, Replica
from services.registry.states import ReplicaState

_S = ReplicaState

NEXT: dict[ReplicaState, frozenset[ReplicaState]] = {
    _S.PENDING: frozenset({_S.FETCHING, _S.STARTING, _S.STOPPED, _S.FAILED}),
    _S.FETCHING: frozenset({_S.STARTING, _S.STOPPED, _S.FAILED}),
    _S.STARTING: frozenset({_S.READY, _S.DRAINING, _S.STOPPED, _S.FAILED}),
    _S.READY: frozenset({_S.DRAINING, _S.STOPPED, _S.FAILED}),
    _S.DRAINING: frozenset({_S.STOPPED, _S.FAILED}),
    _S.STOPPED: frozenset(),
    _S.FAILED: frozenset(),
}


_SERVING = (_S.PENDING, _S.FETCHING, _S.STARTING, _S.READY)


class IllegalTransition(Exception):
    """The state machine has no such transition: a bug in the control loop."""


def target(decision: ReplicaDecision) -> ReplicaState:
    """The replica's state after the decision."""
    match decision:
        case FetchModel():
            return _S.FETCHING
        case StartReplica():
            return _S.STARTING
        case ReadyReplica():
            return _S.READY
        case DrainReplica():
            return _S.DRAINING
        case StopReplica():
            return _S.STOPPED
        case FailReplica():
            return _S.FAILED
        case ExplainReplica() | MeasureReplica() | ProveReplica():
            return decision.seen


def transition(state: ReplicaState, to: ReplicaState) -> ReplicaState:
    """`to`, if the machine allows it from `state`. Raises IllegalTransition otherwise."""
    if to is not state and to not in NEXT[state]:
        raise IllegalTransition(f"{state} → {to}")
    return to


async def create(session: AsyncSession, decision: CreateReplica) -> bool:
    """new → pending. Locks the deployment; false if it has enough replicas."""
    deployment = await session.get(Deployment, decision.deployment, with_for_update=True)
    serving = (Replica.deployment_id == decision.deployment) & Replica.state.in_(_SERVING)
    count = await session.scalar(select(func.count()).where(serving).select_from(Replica))
    if deployment is None or (count or 0) >= deployment.replicas_wanted + int(decision.beside):
        return False
    replica = Replica(
        id=new_id(),
        deployment_id=decision.deployment,
        state=_S.PENDING,
        attempts=decision.attempts,
        reason="looking for a node",
    )
    session.add(replica)
    return True


async def apply(session: AsyncSession, decision: ReplicaDecision) -> bool:
    """Changes the row under its lock. False if it is gone, or no longer in the state that the decision was made on."""
    replica = await session.get(Replica, decision.replica, with_for_update=True)
    if replica is None or replica.state is not decision.seen:
        return False
    to = transition(replica.state, target(decision))
    if to is not replica.state:
        replica.state_changed_at = await transaction_time(session)
        replica.state = to
    for column, value in _facts(replica, decision).items():
        setattr(replica, column, value)
    return True


def _facts(replica: Replica, decision: ReplicaDecision) -> dict[str, Any]:
    """The other columns that the decision changes. `state_changed_at` is already that of the new state."""
    match decision:
        case FetchModel(node=node, memory_bytes=memory, source=source):
            return {"node_name": node, "memory_estimated": memory, "reason": f"fetching {source}"}
        case StartReplica(node=node, memory_bytes=memory, engine=engine):
            facts = {"node_name": node, "memory_estimated": memory, "reason": "loading"}
            return facts | {"settings": msgspec.to_builtins(engine)}
        case ReadyReplica(memory_bytes=memory, device_memory=device, slots=slots, context_tokens=context):
            facts = {"memory_measured": memory, "device_memory": device, "slots": slots, "context_tokens": context}
            return facts | {"reason": "", "ready_at": replica.state_changed_at}
        case MeasureReplica(memory_bytes=memory):
            return {"memory_measured": memory}
        case ProveReplica():
            return {"attempts": 1}
        case FailReplica(code=code, reason=reason):
            return _failure(replica, code, reason)
        case ExplainReplica(reason=reason) | DrainReplica(reason=reason) | StopReplica(reason=reason):
            return {"reason": reason}


def _failure(replica: Replica, code: str, reason: str) -> dict[str, Any]:
    failed_at = replica.state_changed_at
    ready_s = (failed_at - replica.ready_at).total_seconds() if replica.ready_at else None
    attempts = failures_in_a_row(replica.attempts, ready_s)
    delay_s = retry_delay_s(attempts, code)
    retry_at = None if delay_s is None else failed_at + timedelta(seconds=delay_s)
    return {"error_code": code, "reason": reason, "attempts": attempts, "retry_at": retry_at}


async def leave_node(session: AsyncSession, node: str) -> None:
    """Stops the live replicas on a node that is about to be removed, and clears its name from all rows."""
    of_node = Replica.node_name == node
    live = of_node & Replica.state.not_in((_S.STOPPED, _S.FAILED))
    ended = {"state": _S.STOPPED, "state_changed_at": func.now(), "reason": f"node {node} was removed"}
    await session.execute(update(Replica).where(live).values(**ended))
    await session.execute(update(Replica).where(of_node).values(node_name=None))


async def prune(session: AsyncSession, *, older_than: timedelta) -> None:
    """Deletes replicas that ended longer ago than that. Each deployment keeps its newest one, which `attempts` continues
    from."""
    newer = aliased(Replica)
    succeeded = exists().where(newer.deployment_id == Replica.deployment_id, newer.id > Replica.id)
    ended = Replica.state.in_((_S.STOPPED, _S.FAILED)) & (Replica.state_changed_at < func.now() - older_than)
    await session.execute(delete(Replica).where(ended, succeeded))
