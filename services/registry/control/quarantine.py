"""Runs `reconcile`, and leaves out versions that make it raise, so that a bad version does not stop the control loop. Pure.

ClusterState holds validated values, so this is the last line of defence against bugs and data that the checks did not expect.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from services.protocol.errors import CorralError
from services.registry.control.cluster_state import ClusterState
from services.registry.control.decisions import Decision, RefuseWaiting
from services.registry.control.reconcile import load_failure, reconcile


@dataclass(frozen=True)
class Verdict:
    """`faults` holds the versions that were left out, and why."""

    decisions: tuple[Decision, ...]
    faults: dict[str, str]


def decide(cluster: ClusterState) -> Verdict:
    """Raises what `reconcile` raises if no single version causes it."""
    try:
        return Verdict(reconcile(cluster), {})
    except Exception as error:  # checked version by version; raised again if no version causes it
        faults = {version: fault for version in cluster.versions if (fault := _fault(cluster, version))}
        if not faults:
            raise error
    refusals = (
        RefuseWaiting(version, CorralError.code, load_failure(cluster, version, fault))
        for version, fault in faults.items()
        if cluster.waiting(version)
    )
    return Verdict((*reconcile(_without(cluster, faults)), *refusals), faults)


def _fault(cluster: ClusterState, version: str) -> str:
    try:
        reconcile(_without(cluster, cluster.versions.keys() - {version}))
    except Exception as error:  # noqa: BLE001 - as above
        return f"the registry cannot decide about it ({type(error).__name__})"
    return ""


def _without(cluster: ClusterState, versions: Collection[str]) -> ClusterState:
    """The cluster without these versions and everything that belongs to them: their running replicas are left alone."""
    gone = {replica.id for replica in cluster.replicas if replica.version in versions}
    return replace(
        cluster,
        versions={digest: view for digest, view in cluster.versions.items() if digest not in versions},
        deployments=tuple(deployment for deployment in cluster.deployments if deployment.version not in versions),
        replicas=tuple(replica for replica in cluster.replicas if replica.id not in gone),
        jobs=tuple(job for job in cluster.jobs if job.replica not in gone and job.version not in versions),
        demand={digest: demand for digest, demand in cluster.demand.items() if digest not in versions},
        workers={replica: worker for replica, worker in cluster.workers.items() if replica not in gone},
        departed={replica: worker for replica, worker in cluster.departed.items() if replica not in gone},
        processes=tuple(process for process in cluster.processes if process.replica not in gone),
    )
