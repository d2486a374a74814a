"""gRPC on our own HTTP/2: messages, statuses, calls at both ends."""
