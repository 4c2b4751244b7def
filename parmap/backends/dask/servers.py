"""Dask's scheduler and worker without open web pages.

Dask's own start a web server each, also where no dashboard is wanted. It asks nobody for a
password, and it shows logs, calls and data. Here no worker has one. The scheduler has one only
where the dashboard is wanted, and its pages answer only at addresses that begin with a secret.
"""

from __future__ import annotations

import functools
import secrets
from typing import Any

import distributed
from distributed.http.routing import RoutingApplication
from distributed.utils import format_dashboard_link
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import ErrorHandler

__all__ = ["Scheduler", "Worker"]

_HOST = "127.0.0.1"


class Worker(distributed.Worker):  # type: ignore[misc]
    """A worker of Dask without a web server."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Start none."""


class Scheduler(distributed.Scheduler):  # type: ignore[misc]
    """A scheduler of Dask whose web pages are locked, or not there.

    Parameters
    ----------
    dashboard : bool
        Whether to serve pages.
    **options
        Of `distributed.Scheduler`.

    Attributes
    ----------
    link : str
        The address of the dashboard, with the secret that opens it; empty without.
    """

    def __init__(self, *, dashboard: bool, **options: Any) -> None:
        self._secret = secrets.token_urlsafe(16) if dashboard else ""
        super().__init__(dashboard=dashboard, http_prefix=f"/{self._secret}", **options)

    def start_http_server(self, routes: list[Any], *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Serve pages to those who know the secret, on this machine only."""
        if not self._secret:
            return
        self.http_application = _Locked(self._secret, routes)
        self.http_server = server = HTTPServer(self.http_application)
        sockets = bind_sockets(0, _HOST)
        server.add_sockets(sockets)
        server.address, server.port = sockets[0].getsockname()[:2]
        self.services["dashboard"] = server

    @property
    def link(self) -> str:
        """Where the dashboard is."""
        if not self._secret:
            return ""
        # As Dask is configured: on a hub there is a proxy.
        return str(format_dashboard_link(_HOST, f"{self.http_server.port}/{self._secret}"))


class _Locked(RoutingApplication):  # type: ignore[misc]
    """Pages that answer only at addresses that begin with a secret.

    A prefix alone would not do: Dask redirects from the root to its pages, and lists all their
    addresses in a site map.

    Parameters
    ----------
    secret : str
        The first part of all addresses.
    routes : list
        Dask's.
    """

    def __init__(self, secret: str, routes: list[Any]) -> None:
        super().__init__(routes)
        self._secret = secret.encode()

    def find_handler(self, request: Any, **kwargs: Any) -> Any:
        """Find what answers a request."""
        said = request.path.lstrip("/").partition("/")[0].encode(errors="replace")
        if secrets.compare_digest(said, self._secret):
            return super().find_handler(request, **kwargs)
        refused = functools.partial(self.get_handler_delegate, request, ErrorHandler)
        return refused({"status_code": 403})
