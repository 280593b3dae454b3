"""The client's side: listener, HTTP/1.1, HTTP/2."""
