"""Renders a conversation as the model was trained to read it: with its own chat template.

TensorRT-LLM's tensors carry plain text only, so this is the adapter's job. The templates are Jinja, rendered in a
sandbox the way Hugging Face's `apply_chat_template` renders them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fairlead.errors import InvalidArgumentError, UnavailableError


class ChatTemplate:
    """A model's chat template.

    Args:
        source: Jinja text; empty where the model has none.
        tokens: Special tokens the template may name: "bos_token", "eos_token".

    Attributes:
        source: As given.
        tokens: As given.

    Raises:
        UnavailableError: The template is not valid Jinja.
    """

    def __init__(self, source: str, tokens: dict[str, str] | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        environment.filters["tojson"] = _to_json
        self.source, self.tokens = source, dict(tokens or {})
        try:
            self._template = environment.from_string(source) if source else None
        except jinja2.TemplateError as error:
            raise UnavailableError(f"The model's chat template is broken: {error}") from error

    @classmethod
    def of_model(cls, directory: Path) -> ChatTemplate:
        """Reads chat_template.jinja, else the chat_template of tokenizer_config.json.

        Args:
            directory: The model's folder, as Hugging Face lays it out.
        """
        config_file, template_file = directory / "tokenizer_config.json", directory / "chat_template.jinja"
        config = json.loads(config_file.read_text()) if config_file.exists() else {}
        source = template_file.read_text() if template_file.exists() else config.get("chat_template", "")
        if isinstance(source, list):  # several named templates
            source = next((entry["template"] for entry in source if entry["name"] == "default"), "")
        return cls(source, {name: _token(config[name]) for name in ("bos_token", "eos_token") if config.get(name)})

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """Returns the prompt for the assistant's next message.

        Args:
            messages: (role, content) pairs, oldest first.

        Raises:
            InvalidArgumentError: The model has no template, or the template refuses this conversation.
        """
        if self._template is None:
            raise InvalidArgumentError("This model has no chat template; send plain text instead.", field="messages")
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self.tokens)
        except jinja2.TemplateError as error:
            message = f"The model's chat template refuses this conversation: {error}"
            raise InvalidArgumentError(message, field="messages") from error


@lru_cache(maxsize=64)
def template_of(source: str, tokens: tuple[tuple[str, str], ...]) -> ChatTemplate:
    """The template of these, made once. Arguments as of ChatTemplate."""
    return ChatTemplate(source, dict(tokens))


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now(tz=UTC).strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _token(value: Any) -> str:
    return str(value["content"] if isinstance(value, dict) else value)
