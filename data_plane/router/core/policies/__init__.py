"""Which replica serves a request: one module per rule, all behind `policy.Policy`, named in `registry`."""
