"""The Celery worker that passes jobs to the agent. Celery only delivers messages: no result backend, no remote control, no
events, and its logging setup is not used.

Jobs that this node has not acknowledged are in keys of this node (`node.<name>.unacked*`). One agent at a time uses this node's
name and store, so jobs that are there when an agent starts are from one that died. `_restore` puts them back in the queue at
once. Celery's own way is a visibility timeout, which would have to be longer than every pull.
"""

from __future__ import annotations

import logging
import threading
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from celery.exceptions import Reject, WorkerShutdown
from celery.worker import WorkController, state

from services.node.agent import Agent
from services.node.progress import Stopping
from services.process.loops import vital_thread
from services.protocol.jobs import JOB_TASK, node_queue

_NEVER_S = 10 * 365 * 24 * 3600

log = logging.getLogger(__name__)


class JobConsumer:
    """Consumes jobs from `start` to `stop`, in its own thread and one thread per job."""

    def __init__(self, agent: Agent, *, redis_url: str, node: str, threads: int) -> None:
        self._app = _app(agent, redis_url, node_queue(node))
        self._queue = node_queue(node)
        self._threads = threads
        self._thread = threading.Thread(target=vital_thread, args=("jobs", self._run), name="jobs", daemon=True)

    def start(self) -> None:
        state.should_stop = None
        self._thread.start()

    def stop(self) -> None:
        """Stops taking jobs, and returns when those in work have ended."""
        state.should_stop = 0
        self._thread.join()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._restore()
        except WorkerShutdown:
            return
        worker = WorkController(
            app=self._app,
            hostname=self._queue,
            queues=[self._queue],
            pool="threads",
            concurrency=self._threads,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel="WARNING",
        )
        worker.start()

    def _restore(self) -> None:
        def unreachable(error: Exception, interval_s: float) -> None:
            log.warning("Redis does not answer: error=%s retry_in_s=%g", type(error).__name__, interval_s)

        with self._app.connection_for_write() as connection:
            connection.ensure_connection(unreachable, callback=state.maybe_shutdown)
            channel = connection.default_channel
            for tag in channel.client.zrange(channel.unacked_index_key, 0, -1):
                log.info("unacknowledged job of the previous agent returned to the queue")
                channel.qos.restore_by_tag(tag)


def _app(agent: Agent, redis_url: str, queue: str) -> Celery:
    app = Celery("corral.node", broker=_broker_url(redis_url), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "unacked_key": f"{queue}.unacked",
            "unacked_index_key": f"{queue}.unacked_index",
            "unacked_mutex_key": f"{queue}.unacked_mutex",
            "visibility_timeout": _NEVER_S,
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
        },
    )

    def job(payload: dict[str, Any]) -> None:
        try:
            agent.do(payload)
        except Stopping:
            raise Reject("the agent is stopping", requeue=True) from None

    app.task(name=JOB_TASK)(job)
    return app


def _broker_url(redis_url: str) -> str:
    """The URL in kombu's form, which differs for Unix sockets."""
    url = urlsplit(redis_url)
    return f"redis+socket://{url.path}?{url.query.replace('db=', 'virtual_host=')}" if url.scheme == "unix" else redis_url
