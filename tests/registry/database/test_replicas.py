"""The replica's state machine: its transitions, and the writes under the row's lock."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from services.protocol.engine import EngineSettings
from services.registry.control.backoff import retry_delay_s
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
from services.registry.database import catalog, deployments, replicas
from services.registry.database.database import Database
from services.registry.database.tables import Node, Replica
from services.registry.states import NodeState, ReplicaState
from tests.doubles.node import pulled_model
from tests.registry.control.cluster_states import NOW, ago

S = ReplicaState

#: The transitions of the diagram in ReplicaState's docstring.
DRAWN = {
    (S.PENDING, S.FETCHING),
    (S.PENDING, S.STARTING),
    (S.PENDING, S.STOPPED),
    (S.FETCHING, S.STARTING),
    (S.FETCHING, S.STOPPED),
    (S.STARTING, S.READY),
    (S.STARTING, S.DRAINING),
    (S.STARTING, S.STOPPED),
    (S.READY, S.DRAINING),
    (S.READY, S.STOPPED),
    (S.DRAINING, S.STOPPED),
    *((state, S.FAILED) for state in (S.PENDING, S.FETCHING, S.STARTING, S.READY, S.DRAINING)),
}


def test_the_transitions_are_those_of_the_diagram() -> None:
    allowed = {(state, to) for state, nexts in replicas.NEXT.items() for to in nexts}
    assert allowed == DRAWN
    assert {state for state, nexts in replicas.NEXT.items() if not nexts} == {state for state in S if state.is_over}


@given(st.lists(st.sampled_from(list(S))))
def test_any_sequence_of_states_follows_the_diagram(wishes: list[ReplicaState]) -> None:
    state, path = S.PENDING, [S.PENDING]
    for wish in wishes:
        try:
            state = replicas.transition(state, wish)
        except replicas.IllegalTransition:
            assert (state, wish) not in DRAWN
            continue
        path.append(state)
    steps = {(one, other) for one, other in zip(path, path[1:], strict=False) if one is not other}
    assert steps <= DRAWN
    assert [state for state in path[:-1] if state.is_over and path[-1] is not state] == []


ENGINE = EngineSettings(slots=2)


def decisions(replica: str, seen: ReplicaState) -> list[ReplicaDecision]:
    return [
        FetchModel(replica, seen, "v", "n1", 10, "pypi:m", "m"),
        StartReplica(replica, seen, "v", "n1", "b", 10, ENGINE),
        ReadyReplica(replica, seen, 20, 5, 8, 4096),
        MeasureReplica(replica, seen, 30),
        ProveReplica(replica, seen),
        ExplainReplica(replica, seen, "because", "memory"),
        DrainReplica(replica, seen, "n1", "idle"),
        StopReplica(replica, seen, "gone"),
        FailReplica(replica, seen, "model_load_failed", "broken"),
    ]


@pytest.fixture
async def deployment(database: Database) -> int:
    async with database.transaction() as session:
        facts = {
            "agent": "a",
            "cpus": 1,
            "memory_total": 1,
            "memory_available": 1,
            "disk_total": 1,
            "disk_free": 1,
            "devices": [],
        }
        session.add(Node(name="n1", state=NodeState.READY, last_seen_at=NOW, **facts))
        version = await catalog.register(session, pulled_model("registry.ollama.ai/library/m:latest", "m"), source="pypi:m")
        found = await deployments.deploy_on_demand(session, version, EngineSettings())
    assert found is not None
    return found


async def a_replica(database: Database, deployment: int, attempts: int = 1) -> str:
    async with database.transaction() as session:
        assert await replicas.create(session, CreateReplica(deployment, attempts))
    async with database.transaction() as session:
        return (await session.scalars(select(Replica.id).order_by(Replica.id.desc()).limit(1))).one()


async def apply(database: Database, decision: ReplicaDecision) -> bool:
    async with database.transaction() as session:
        return await replicas.apply(session, decision)


async def row(database: Database, replica: str) -> Replica:
    async with database.transaction() as session:
        return await session.get_one(Replica, replica)


async def test_a_replica_from_start_to_stop(database: Database, deployment: int) -> None:
    replica = await a_replica(database, deployment)
    for decision in (
        ExplainReplica(replica, S.PENDING, "no room", "memory"),
        FetchModel(replica, S.PENDING, "v", "n1", 10, "pypi:m", "m"),
        StartReplica(replica, S.FETCHING, "v", "n1", "b", 10, ENGINE),
        ReadyReplica(replica, S.STARTING, 20, 5, 8, 4096),
        MeasureReplica(replica, S.READY, 30),
        DrainReplica(replica, S.READY, "n1", "idle"),
        StopReplica(replica, S.DRAINING, "idle"),
    ):
        assert await apply(database, decision), decision
    over = await row(database, replica)
    assert (over.state, over.reason, over.node_name) == (S.STOPPED, "idle", "n1")
    assert (over.memory_estimated, over.memory_measured, over.slots, over.context_tokens) == (10, 30, 8, 4096)
    assert over.ready_at is not None
    assert over.ready_at < over.state_changed_at


async def test_a_decision_from_a_stale_read_changes_nothing(database: Database, deployment: int) -> None:
    replica = await a_replica(database, deployment)
    assert await apply(database, StartReplica(replica, S.PENDING, "v", "n1", "b", 10, ENGINE))
    before = await row(database, replica)
    for decision in decisions(replica, S.PENDING):
        assert not await apply(database, decision)
    after = await row(database, replica)
    assert (after.state, after.state_changed_at, after.reason) == (before.state, before.state_changed_at, before.reason)
    assert not await apply(database, StopReplica("gone", S.PENDING, ""))


async def test_one_of_two_concurrent_decisions_wins(database: Database, deployment: int) -> None:
    replica = await a_replica(database, deployment)
    assert await apply(database, StartReplica(replica, S.PENDING, "v", "n1", "b", 10, ENGINE))
    outcomes = await asyncio.gather(
        apply(database, ReadyReplica(replica, S.STARTING, 20, 5, 8, 4096)),
        apply(database, DrainReplica(replica, S.STARTING, "n1", "unwanted")),
        apply(database, FailReplica(replica, S.STARTING, "model_load_failed", "broken")),
    )
    assert sorted(outcomes) == [False, False, True]


async def test_an_illegal_transition_is_refused(database: Database, deployment: int) -> None:
    replica = await a_replica(database, deployment)
    with pytest.raises(replicas.IllegalTransition):
        await apply(database, ReadyReplica(replica, S.PENDING, 1, 0, 1, 1))
    assert (await row(database, replica)).state is S.PENDING


async def test_a_deployment_gets_no_more_replicas_than_it_wants(database: Database, deployment: int) -> None:
    async def create() -> bool:
        async with database.transaction() as session:
            return await replicas.create(session, CreateReplica(deployment, 1))

    assert sorted(await asyncio.gather(create(), create(), create())) == [False, False, True]


async def test_failures_delay_the_next_attempt(database: Database, deployment: int) -> None:
    replica = await a_replica(database, deployment, attempts=3)
    assert await apply(database, FailReplica(replica, S.PENDING, "model_load_failed", "broken"))
    over = await row(database, replica)
    assert over.retry_at is not None
    assert (over.retry_at - over.state_changed_at).total_seconds() == 4


async def test_a_permanent_failure_is_not_retried(database: Database, deployment: int) -> None:
    replica = await a_replica(database, deployment)
    assert await apply(database, FailReplica(replica, S.PENDING, "invalid_model_file", "broken"))
    assert (await row(database, replica)).retry_at is None


@pytest.mark.parametrize(("ready_s", "attempts"), [(59, 5), (61, 1)], ids=["not proven", "proven"])
async def test_a_minute_of_service_resets_the_attempts(
    database: Database, deployment: int, ready_s: float, attempts: int
) -> None:
    replica = await a_replica(database, deployment, attempts=5)
    assert await apply(database, StartReplica(replica, S.PENDING, "v", "n1", "b", 10, ENGINE))
    assert await apply(database, ReadyReplica(replica, S.STARTING, 20, 5, 8, 4096))
    async with database.transaction() as session:
        earlier = Replica.ready_at - (NOW - ago(ready_s))
        await session.execute(update(Replica).values(ready_at=earlier))
    assert await apply(database, FailReplica(replica, S.READY, "worker_lost", "killed by SIGKILL"))
    assert (await row(database, replica)).attempts == attempts


async def test_an_answer_resets_the_attempts(database: Database, deployment: int) -> None:
    replica = await a_replica(database, deployment, attempts=5)
    assert await apply(database, StartReplica(replica, S.PENDING, "v", "n1", "b", 10, ENGINE))
    assert await apply(database, ReadyReplica(replica, S.STARTING, 20, 5, 8, 4096))
    assert await apply(database, ProveReplica(replica, S.READY))
    assert await apply(database, FailReplica(replica, S.READY, "worker_lost", "killed by signal 9"))
    over = await row(database, replica)
    assert over.retry_at is not None
    assert (over.attempts, (over.retry_at - over.state_changed_at).total_seconds()) == (1, 1)


@pytest.mark.parametrize(("attempts", "delay_s"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)], ids=str)
def test_the_delay_doubles_up_to_its_maximum(attempts: int, delay_s: float) -> None:
    assert retry_delay_s(attempts, "worker_lost") == delay_s


async def test_the_database_requires_a_node_for_a_running_replica(database: Database, deployment: int) -> None:
    replica = await a_replica(database, deployment)
    with pytest.raises(IntegrityError, match="ck_replicas_node_unless_pending"):
        async with database.transaction() as session:
            await session.execute(update(Replica).where(Replica.id == replica).values(state=S.READY))
