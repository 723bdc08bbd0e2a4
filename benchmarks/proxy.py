"""A TCP proxy before the object storage that can be told to fail as networks and servers do."""

import contextlib
import random
import socket
import threading
import time

REFUSAL = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
CHUNK = 65536


class Proxy:
    """While it fails, a request is refused with 503, or cut on its way, or done and its answer cut:
    then its sender can't know whether it was done."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._fails_until = 0.0
        self._chance = random.Random(0)
        self._listener = socket.create_server((host, 0), backlog=128)
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def fail(self, seconds: float) -> None:
        self._fails_until = time.monotonic() + seconds

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(self._target, timeout=2) as server,
        ):
            server.settimeout(None)
            back = threading.Thread(target=self._pump, args=(server, client, b""), daemon=True)
            back.start()
            self._pump(client, server, REFUSAL)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, refusal: bytes) -> None:
        """Until either end closes. refusal: what the source may be answered."""
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                if time.monotonic() < self._fails_until:
                    fate = self._chance.random()
                    if fate < 0.3 and refusal:
                        source.sendall(refusal)
                    if fate < 0.5:
                        break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
