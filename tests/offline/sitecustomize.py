"""Python loads this file at start-up when its folder is on PYTHONPATH: no process of the test suite can reach a network."""

import socket


def _refuse(*arguments, **_):
    raise OSError(f"the test suite is offline, but something tried to reach {arguments[1:] or arguments}")


class _LocalSocket(socket.socket):
    """Sockets between processes of one machine (AF_UNIX) work; internet sockets neither connect nor send."""

    def connect(self, address):
        return super().connect(address) if self.family == socket.AF_UNIX else _refuse(self, address)

    def connect_ex(self, address):
        return super().connect_ex(address) if self.family == socket.AF_UNIX else _refuse(self, address)

    def sendto(self, *arguments):
        return super().sendto(*arguments) if self.family == socket.AF_UNIX else _refuse(self, arguments[-1])


socket.socket = _LocalSocket
socket.getaddrinfo = _refuse
socket.create_connection = _refuse
