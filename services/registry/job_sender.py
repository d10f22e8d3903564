"""Sends jobs through Celery, as JSON, to the queue of their node. Outcomes come back as job events (job_events.py)."""

from __future__ import annotations

import asyncio

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from services.protocol.connection import as_ours
from services.protocol.errors import CorralError, Unavailable
from services.protocol.jobs import JOB_TASK, Job, job_to_payload, node_queue

#: A job that an agent took and never acknowledged (its machine died) is queued again after this time. Jobs are idempotent, so
#: a second delivery of one that only took longer does no harm.
VISIBILITY_TIMEOUT_S = 3600


class JobSender:
    """Sends jobs to their nodes. Raises Unavailable if Redis does not answer or cannot write, QueueMemoryFull, RedisRefused."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("corral.registry", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            task_serializer="json",
            accept_content=["json"],
            task_ignore_result=True,
            result_backend=None,
            broker_connection_timeout=5,
            broker_transport_options={
                "visibility_timeout": VISIBILITY_TIMEOUT_S,
                "socket_timeout": 5,
                "socket_connect_timeout": 5,
                # One attempt only: the control loop retries.
                "max_retries": 1,
                "interval_start": 0,
            },
        )

        # A private connection: Celery's connection pools belong to the process, and closing them closes them for every app.
        self._connection = self._app.connection_for_write()
        self._one_at_a_time = asyncio.Lock()

    async def send(self, node: str, job: Job) -> None:
        async with self._one_at_a_time:
            await asyncio.to_thread(self._send, node, job)

    def _send(self, node: str, job: Job) -> None:
        try:
            self._app.send_task(
                JOB_TASK,
                args=(job_to_payload(job),),
                queue=node_queue(node),
                task_id=job.job,
                connection=self._connection,
                retry=False,
            )
        except (OperationalError, *self._connection.connection_errors, *self._connection.channel_errors) as error:
            self._connection.release()
            self._connection = self._app.connection_for_write()
            raise _as_ours(error) from error

    def close(self) -> None:
        self._connection.release()
        self._app.close()


def _as_ours(error: Exception) -> CorralError:
    cause = error.__cause__ if isinstance(error, OperationalError) else error
    if isinstance(cause, RedisError | OSError):
        return as_ours(cause)
    return Unavailable(f"the job broker does not answer ({type(error).__name__})")
