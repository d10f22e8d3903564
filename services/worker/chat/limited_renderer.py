"""LimitedRenderer: renders a chat template in a process with limits, because a template is untrusted code."""

from __future__ import annotations

from services.protocol.errors import BadRequest, CorralError, InvalidModelFile, ModelLoadFailed
from services.worker.chat.dialect import Dialect
from services.worker.chat.rendering import Rendered, Rendering, TemplateSetup
from services.worker.limited_process import Crashed, Killed, LimitedProcessPool, LimitExceeded, Limits

#: Limits for one chat. Real templates render a long chat in a few milliseconds.
LIMITS = Limits(cpu_s=1.0, wall_s=30.0, memory_bytes=128 << 20)


class LimitedRenderer:
    """`render` is thread-safe. The constructor raises InvalidModelFile if the source is not a template, or if it exceeds the
    limits on the smallest chats, and ModelLoadFailed if its process was killed."""

    def __init__(self, setup: TemplateSetup) -> None:
        # The first token of every answer waits for the rendering, so these children run at the worker's own priority.
        self._pool = LimitedProcessPool("services.worker.chat.renderer", setup, limits=LIMITS, nice=0)
        try:
            self.dialect = self._pool.start(Dialect)
        except Killed as error:
            self.close()
            raise ModelLoadFailed("the process that renders the model's chat template was killed") from error
        except LimitExceeded as error:
            self.close()
            raise InvalidModelFile(f"the model's chat template cannot be used: {error}") from error
        except CorralError:
            self.close()
            raise

    def render(self, rendering: Rendering) -> Rendered:
        """Like Renderer.render. Also raises BadRequest if the template exceeds the limits on this chat."""
        try:
            return self._pool.call(rendering, Rendered)
        except Crashed as error:
            raise CorralError("the process that renders the model's chat template crashed") from error
        except Killed as error:
            raise CorralError("the process that renders the model's chat template was killed") from error
        except LimitExceeded as error:
            raise BadRequest(f"the model's chat template refuses these messages: {error}") from error

    def close(self) -> None:
        self._pool.close()
