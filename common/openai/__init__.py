"""OpenAI's API as it is spoken to engines: what replica agents and routers share."""
