"""A socket that listens before anything is loaded, so that a port in use shows at once; nothing heavy is imported."""

import errno
import ipaddress
import socket

from common.errors import InvalidSetting, PortInUse, ServiceError

BACKLOG = 2_048
GRACE_SECONDS = 5
"""How long requests under way may take to finish after a stop."""


def checked_host(host: str, *, with_keys: bool) -> str:
    """Return the host, or refuse one that others can reach while nobody is asked who they are.

    Raises
    ------
    InvalidSetting
        When it is no loopback address and there are no keys.
    """
    if host == "localhost" or with_keys:
        return host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InvalidSetting(
            f"host {host!r} can be reached from other machines, and no keys were given",
            expected="a loopback address (127.0.0.1, ::1, localhost), or --keys FILE",
            consequence="nothing was opened",
            mend="anabranch keys new NAME, then --keys with that file",
        )
    return host


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises
    ------
    PortInUse
        When another process listens there.
    ServiceError
        When the address cannot be bound for another reason.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServiceError(f"host {host!r} cannot be resolved: {error}", mend="--host 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # listening now: two sockets that are only bound could share the port
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} of {host} is in use", expected="a free port", mend="--port 0 takes a free one"
            ) from error
        raise ServiceError(
            f"{host}:{port} cannot be bound: {error.strerror}", mend="another --host or --port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the http URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
