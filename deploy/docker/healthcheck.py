"""Asks this container's own /readyz and exits 0 when it answers 200; the HEALTHCHECK of every Fairlead container.

Only `socket` and nothing of Fairlead is imported: it runs every few seconds in every container, and `python -I -S`
with this file takes a few tens of milliseconds where an HTTP client library takes several times that.
"""

import os
import socket
import sys

TIMEOUT_S = 2.0


def main() -> int:
    """Returns the exit status: 0 ready, 1 not ready (with the reason the process gives on standard output)."""
    port = int(os.environ["FAIRLEAD_OPS_PORT"])
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := connection.recv(4096):
                answer += piece
    except OSError as error:
        print(f"no answer from /readyz on port {port}: {error}")
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    print(body.decode(errors="replace").strip())
    return 0 if status == [b"200"] else 1


if __name__ == "__main__":
    sys.exit(main())
