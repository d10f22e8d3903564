"""The Celery app that only sends: jobs leave as JSON on the queue of their node, and no result ever comes back this way."""

from __future__ import annotations

import asyncio

from celery import Celery
from kombu.exceptions import OperationalError

from services.protocol.errors import Unavailable
from services.protocol.jobs import JOB_TASK, Job, job_to_payload, node_queue

#: A job that an agent took and never acknowledged (its machine died) goes to the queue again after this time. Jobs are
#: idempotent, so that one that merely took longer does no harm.
VISIBILITY_TIMEOUT_S = 3600


class JobSender:
    """Raises Unavailable when the broker does not answer."""

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
                # The loop has its own patience: one try here.
                "max_retries": 1,
                "interval_start": 0,
            },
        )

        # Of our own: the pools that Celery takes one from are the process's, and closing those closes them for every app.
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
            raise Unavailable(f"the broker of jobs does not answer ({type(error).__name__})") from error

    def close(self) -> None:
        self._connection.release()
        self._app.close()
