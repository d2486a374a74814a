"""Chat templates, rendered as Hugging Face renders them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.triton.chat import ChatTemplate
from engines.triton.adapter import TINY_MODEL
from fairlead.errors import InvalidArgumentError, UnavailableError

TURNS = (("system", "Be brief."), ("user", "Hi <s> {{ 7 }}"))


def test_the_tiny_models_template() -> None:
    """Shows the shipped template, and that content is data: nothing in it is evaluated."""
    rendered = ChatTemplate.of_model(TINY_MODEL).render(TURNS)
    assert rendered == "system: Be brief.\nuser: Hi <s> {{ 7 }}\nassistant:"


def test_a_template_inside_tokenizer_config(tmp_path: Path) -> None:
    """Shows the older place of a template, special tokens as text or object, and the usual helpers."""
    template = (
        "{{ bos_token }}{%- for m in messages %}\n    [{{ m.role }}] {{ m.content | trim }}{{ eos_token }}\n"
        "{%- endfor %}{%- if add_generation_prompt %}[assistant]{% endif %}{{ {'a': 'é'} | tojson }}"
    )
    config = {"chat_template": template, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    rendered = ChatTemplate.of_model(tmp_path).render([("user", " hi ")])
    assert rendered == '<s>    [user] hi</s>[assistant]{"a": "é"}'


def test_named_templates(tmp_path: Path) -> None:
    """Shows that of several templates the one named default is taken."""
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.of_model(tmp_path).render([("user", "hi")]) == "hi"


def test_no_template_and_a_refusing_template() -> None:
    """Shows that the caller is told what is wrong with the conversation."""
    with pytest.raises(InvalidArgumentError, match="no chat template"):
        ChatTemplate("").render(TURNS)
    with pytest.raises(InvalidArgumentError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(TURNS)


def test_a_broken_template_and_one_that_reaches_out() -> None:
    """Shows that a template is code from elsewhere: broken ones are told of, and the sandbox holds."""
    with pytest.raises(UnavailableError, match="broken"):
        ChatTemplate("{% for %}")
    with pytest.raises(InvalidArgumentError):
        ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}").render(TURNS)
