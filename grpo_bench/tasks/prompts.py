"""How a question becomes the model's input: a plain template or the tokenizer's chat template, with shots before it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import PromptConfig

# Llama's chat templates print today's date unless they are given one: a prompt must not depend on the day.
_TEMPLATE_DATE = "26 Jul 2024"


def render(cfg: PromptConfig, question: str, tokenizer: Any) -> str:
    """The prompt of one question.

    plain: every shot through ``shot_template``, then the question through ``template``, joined as they are.
    chat: ``system``, each shot as a turn of user and assistant, the question as the last user turn; user turns go
    through ``template``, and the tokenizer's chat template writes the whole.

    Raises UserError when the tokenizer has no chat template, or one that refuses these turns.
    """
    if cfg.style == "plain":
        shots = "".join(fill(cfg.shot_template, **shot) for shot in cfg.shots)
        return shots + fill(cfg.template, question=question)
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "task.prompt.style=chat, but this model's tokenizer has no chat template; use task.prompt.style=plain"
        )
    messages = [{"role": "system", "content": cfg.system}] if cfg.system is not None else []
    for shot in cfg.shots:
        messages.append({"role": "user", "content": fill(cfg.template, question=shot["question"])})
        messages.append({"role": "assistant", "content": shot["answer"]})
    messages.append({"role": "user", "content": fill(cfg.template, question=question)})
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, date_string=_TEMPLATE_DATE
        )
    except TemplateError as error:
        raise UserError(
            f"the tokenizer's chat template refuses this prompt ({error}); "
            "set task.prompt.system=null and put its text into task.prompt.template, or use task.prompt.style=plain"
        ) from error


def fill(template: str, **values: str) -> str:
    """``template`` with {question} and {answer} replaced once; other braces, as in ``\\boxed{}``, stay as they are."""
    return re.sub(r"\{(question|answer)\}", lambda match: values.get(match[1], match[0]), template)


def separator(cfg: PromptConfig) -> str:
    """What stands between a prompt and the response to it.

    A plain template that ends in ``Answer:`` expects the response to begin with a space, so that a word keeps the
    token it has inside a text; a chat template and a template that ends in white space expect nothing.
    """
    return "" if cfg.style == "chat" or cfg.template[-1:].isspace() else " "


def adds_special_tokens(cfg: PromptConfig) -> bool:
    """Whether the tokenizer adds its special tokens to a rendered prompt; a chat template has written its own."""
    return cfg.style == "plain"
