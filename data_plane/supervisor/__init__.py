"""Several router processes behind the same ports, replaced one by one: `python -m data_plane.router --workers N`."""
