"""`python -IS ready.py PORT` exits with 0 when the service on that port is ready. For health checks: imports little."""

import socket
import sys

with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5) as connection:
    connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
    answer = connection.recv(64)
sys.exit(0 if b" 200 " in answer else answer.decode(errors="replace"))
