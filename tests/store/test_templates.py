"""Templates that write the day: what is asked and scored tomorrow is what is asked today."""

from datetime import date, datetime

import pytest
from conftest import make_tokenizer, save_model
from jinja2 import Environment
from transformers.utils import chat_template_utils

from persyn_datasets.signals import reward_model
from persyn_datasets.store.models import load_tokenizer, prompt_ids
from persyn_datasets.store.templates import at_date

USER = [{"role": "user", "content": "Which day is it?"}]
TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
IN_A_VARIABLE = "{% set how = '%d %b %Y' %}Today: {{ strftime_now(how) }}\n" + TURNS
WRITTEN = "Today: {{ strftime_now('%Y-%m-%d') }}\n" + TURNS


def on(year, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(year, 6, 15)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def model_with(template, folder, **options):
    save_model(folder, **options)
    make_tokenizer(template).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%A, %B %-d", "%j %y", "no day"])
def test_a_template_at_a_date_is_the_same_but_for_it(form):
    source = "\n{% if x %}a{% endif %}\n  {% if x %}b{% endif %}{{ strftime_now(form) }}\n"
    hugging_face = Environment(trim_blocks=True, lstrip_blocks=True)
    day = date(2026, 1, 1)
    fixed = hugging_face.from_string(at_date(source, day))
    said = hugging_face.from_string(source).render(x=1, form=form, strftime_now=day.strftime)
    assert fixed.render(x=1, form=form, strftime_now=None) == said
    assert at_date("no date", day) == "no date"


@pytest.mark.parametrize("template", [WRITTEN, IN_A_VARIABLE])
def test_a_local_teacher_is_asked_tomorrow_as_today(template, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(model_with(template, tmp_path))
    on(2026, monkeypatch)
    today = prompt_ids(tokenizer, USER)
    on(2031, monkeypatch)
    assert prompt_ids(tokenizer, USER) == today
    assert "2031" not in tokenizer.decode(today) and "Today" in tokenizer.decode(today)


@pytest.mark.parametrize("template", [WRITTEN, IN_A_VARIABLE])
def test_a_reward_model_scores_tomorrow_as_today(template, tmp_path, monkeypatch):
    folder = model_with(template, tmp_path, head="SequenceClassification", num_labels=1)
    rows = [(USER, "Monday."), (USER, "I do not know.")]
    on(2026, monkeypatch)
    today = reward_model.score(rows, {}, reward_model=folder)
    on(2031, monkeypatch)
    assert reward_model.score(rows, {}, reward_model=folder) == today
    # Scores that were made on other days are not taken for these.
    assert reward_model.identity({"reward_model": folder})["date"] == "2026-01-01"


def test_a_reward_model_without_a_date_keeps_its_identity(reward_model_folder):
    assert set(reward_model.identity({"reward_model": reward_model_folder})) == {"weights"}


@pytest.fixture
def reward_model_folder(tmp_path):
    return model_with(TURNS, tmp_path, head="SequenceClassification", num_labels=1)
