"""`make native`: compiles the router's busiest modules to machine code, as common/native.py loads them."""
