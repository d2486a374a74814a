"""HTTP/2 for gRPC (RFC 9113, RFC 7541), without any I/O: bytes in, calls out, bytes to send."""
