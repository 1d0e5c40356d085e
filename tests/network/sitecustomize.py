"""Python imports this at its start where PYTHONPATH names its folder: names that are looked up and
addresses outside this machine are written to the file MEDGAN_NETWORK_LOG.
"""

import os
import socket

_LOCAL = (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::")


def _recorded(function, host_of):
    def recording(*words, **options):
        host = host_of(*words)
        if host not in _LOCAL:
            with open(os.environ["MEDGAN_NETWORK_LOG"], "a") as log:
                log.write(f"{function.__name__} {host}\n")
        return function(*words, **options)

    return recording


def _host_of_socket(_, address):
    return address[0] if isinstance(address, tuple) else None


if os.environ.get("MEDGAN_NETWORK_LOG"):
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, _recorded(getattr(socket, name), lambda host, *_: host))
    socket.socket.connect = _recorded(socket.socket.connect, _host_of_socket)
