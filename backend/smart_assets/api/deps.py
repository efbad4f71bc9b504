"""What routes ask for.

All are coroutines: FastAPI would run plain functions in threads, which costs more than they do.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPBearer

from smart_assets.access.api_keys import Caller
from smart_assets.access.ratelimit import Use
from smart_assets.access.scopes import Scope
from smart_assets.api.limiting import admit
from smart_assets.api.presenting import Presenter
from smart_assets.errors import Forbidden
from smart_assets.runtime import Runtime
from smart_assets.settings import is_loopback

# Only describes the key to API documents; the check is ours, so that its errors have our shape.
_bearer = HTTPBearer(
    auto_error=False,
    bearerFormat="key",
    description="A key, where the service has keys set: as it was shown when it was made, without `Bearer`.",
)


async def get_runtime(request: Request) -> Runtime:
    """What the running service is made of."""
    runtime: Runtime = request.app.state.runtime
    return runtime


RuntimeDep = Annotated[Runtime, Depends(get_runtime)]


class May:
    """Who is calling, and may do what takes a scope: Unauthorized, Forbidden or RateLimited before anything of the body
    is read."""

    def __init__(self, scope: Scope | None, use: Use = Use.READS) -> None:
        """None: whoever has a key. `use` is what the call counts as."""
        self.scope = scope
        self.use = use

    async def __call__(
        self, request: Request, runtime: RuntimeDep, _: Annotated[object, Security(_bearer)] = None
    ) -> Caller:
        """The caller."""
        caller = await admit(request, runtime, self.use)
        if self.scope is not None:
            caller.need(self.scope)
        return caller


CallerDep = Annotated[Caller, Depends(May(None))]
ReaderDep = Annotated[Caller, Depends(May(Scope.READ))]
WriterDep = Annotated[Caller, Depends(May(Scope.WRITE))]
UploaderDep = Annotated[Caller, Depends(May(Scope.WRITE, Use.UPLOADS))]
DeleterDep = Annotated[Caller, Depends(May(Scope.DELETE))]
AdminDep = Annotated[Caller, Depends(May(Scope.ADMIN))]


AssetId = Annotated[str, Path(description="The `id` of an asset.")]
TicketId = Annotated[str, Path(description="The `id` of an upload ticket.")]


async def get_presenter(request: Request, runtime: RuntimeDep) -> Presenter:
    """Shows assets with addresses this request's sender can use."""
    base_url = runtime.settings.public_url or str(request.base_url).rstrip("/")
    return Presenter(runtime.delivery, base_url)


PresenterDep = Annotated[Presenter, Depends(get_presenter)]


async def require_operator(request: Request, runtime: RuntimeDep, _: Annotated[object, Security(_bearer)]) -> None:
    """Let in who runs the service: from this machine without a proxy between, or with a key of the scope `admin`."""
    client = request.client.host if request.client else ""
    if is_loopback(client) and "x-forwarded-for" not in request.headers and "forwarded" not in request.headers:
        return
    if runtime.settings.open_mode:
        raise Forbidden("this is answered to requests from this machine only")
    caller = await admit(request, runtime, None)
    caller.need(Scope.ADMIN)


OperatorDep = Depends(require_operator)
