"""The client SDK: one core that decides, two thin drivers that do the I/O.

`core` turns a request into *steps* (send this to that address, wait so long, deliver this piece) as a plain generator
that knows neither threads nor asyncio; `client` and `async_client` carry the steps out. Everything users need is
exported by the package `fairlead` itself.
"""
