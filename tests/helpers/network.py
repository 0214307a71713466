"""A relay between a viewer and a server that can be cut or die silently."""

import socket
import struct
import threading
from contextlib import suppress

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Network:
    """Relay connections from `port` to a server.

    Attributes:
        refused: how many connections were refused while it was cut.
    """

    def __init__(self, server: int) -> None:
        self._server, self._dead, self._is_cut = server, threading.Event(), False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.port = self._listener.getsockname()[1]
        self.refused = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def die(self) -> None:
        """Drop everything silently from now on."""
        self._dead.set()

    def revive(self) -> None:
        """Carry new connections again; the old ones stay dead."""
        self._dead.clear()

    def cut(self) -> None:
        """Reset all connections, and each new one until `mend`."""
        self._is_cut = True
        for each in self._sockets:
            self._reset(each)
        self._sockets.clear()

    def mend(self) -> None:
        """Accept connections again."""
        self._is_cut = False

    def close(self) -> None:
        """Close the listener and all connections."""
        for each in (self._listener, *self._sockets):
            each.close()

    def _reset(self, each: socket.socket) -> None:
        with suppress(OSError):  # closed already
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            each.shutdown(socket.SHUT_RDWR)
        each.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                viewer, _ = self._listener.accept()
                if self._is_cut:
                    self.refused += 1
                    self._reset(viewer)
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self._server))
                except OSError:  # it is being restarted
                    self._reset(viewer)
                    continue
                self._sockets += [viewer, server]
                for way in ((viewer, server), (server, viewer)):
                    threading.Thread(target=self._carry, args=way, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self._dead.is_set():
                    return
                target.sendall(data)
        with suppress(OSError):  # closed already
            target.shutdown(socket.SHUT_WR)  # after what was sent, unlike a reset, which may overtake it
