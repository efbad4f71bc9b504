"""One process that serves: the application on a socket, until it is asked to stop."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path

from smart_assets.errors import ConfigurationError
from smart_assets.scratch import ScratchDirectory
from smart_assets.settings import Settings


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ConfigurationError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} on {host} is taken by another program: stop it, or set ASSETS_PORT to another port"
            ) from error
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def serve_on(
    listener: socket.socket, settings: Settings, *, ready: Callable[[], None], supervisor: socket.socket | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, or until the `supervisor` at the other end is gone; `ready` is called before.

    Requests that run then have `settings.shutdown_seconds` to end. Raises ConfigurationError where it cannot begin.
    """
    # Imported late: `--help` and a wrong setting answer at once.
    import uvicorn

    from smart_assets.connections import bounded_protocol
    from smart_assets.main import create_app
    from smart_assets.observability import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    os.umask(0o027)  # what the service writes is nobody's outside its group
    app = create_app(settings)
    protocol = bounded_protocol(settings)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",  # entered below, so that what is wrong is said in one sentence
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            protocol.leave()
            await super().shutdown(sockets)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            _keep_temporary_files(settings.temporary_dir)
            server = Server(config)

            def stop(*_: object) -> None:
                server.should_exit = True

            # The server takes these over while it runs and raises them again at its end: by then they have done
            # their work, and what was opened is still to be closed.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, stop)
            loop = asyncio.get_running_loop()
            if supervisor is not None:
                loop.add_reader(supervisor, stop)  # it never says anything, but hangs up when it dies
            ready()
            await server.serve(sockets=[listener])
            if supervisor is not None:
                loop.remove_reader(supervisor)
            if server.server_state.tasks:  # cancelled at the end of their time: let them clean up
                await asyncio.wait(server.server_state.tasks, timeout=10)

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(run())


def _keep_temporary_files(directory: Path) -> None:
    """Have everybody's temporary files below `directory`, where they are removed even if this process is killed."""
    scratch = ScratchDirectory(directory)
    # Behind multiprocessing's own last act (-100), which wants to remove its directory itself.
    util.Finalize(None, scratch.close, exitpriority=-200)
    tempfile.tempdir = str(scratch.path.absolute())
    # A socket is kept there, `pymp-…/listener-…`, and its address has no more room (unix(7)).
    if len(os.fsencode(tempfile.tempdir)) + 40 >= 108:
        tempfile.tempdir = scratch.short_path
