"""The HTTP front door: OpenAI's API over the router's flow, in the router's process."""
