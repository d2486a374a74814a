"""HTTP/1.1 on the parser of the httptools library: nothing here knows what is served."""
