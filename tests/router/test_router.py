import json
import os
import pickle
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import save_model
from datasets import Dataset, Features
from datasets.fingerprint import Hasher

from persyn_datasets import InputError, Route, Router, Sampling, Teacher, train_router
from persyn_datasets.data import schema
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.router import training
from persyn_datasets.store.identity import teacher_identity

NAMES = ["zebra", "ant", "mole"]  # not in alphabetical order
TEACHERS = [
    Teacher(f"org/{n}", name=n, sampling=Sampling(max_tokens=9, stop=("#",))) for n in NAMES
]
WORDS = ("dog", "cat", "owl")  # the planted preference: dog → zebra, cat → ant, owl → mole
HEAD = {"freeze_backbone": True, "teachers": TEACHERS}


def user(text):
    return [{"role": "user", "content": text}]


def about(n, start=0, turns=user):
    """n prompts and the teacher that is best for each."""
    words = [WORDS[i % 3] for i in range(n)]
    return [turns(f"Tell me of {i + start} {w}") for i, w in enumerate(words)], [
        NAMES[i % 3] for i in range(n)
    ]


def pairs_of(prompts, best, worst_first=False):
    """All pairs; after the best, teachers come in the order of `NAMES`."""
    rows = []
    for key, (messages, first) in enumerate(zip(prompts, best, strict=True)):
        order = [first, *(n for n in NAMES if n != first)]
        for good, bad in combinations(order[::-1] if worst_first else order, 2):
            a, b = (bad, good) if key % 2 else (good, bad)
            row = {"teacher_a": a, "teacher_b": b, "label": int(b == good)}
            rows.append({"prompt_id": str(key), "messages": messages, "margin": 1.0} | row)
    return Dataset.from_list(rows, features=Features(schema.PAIRS))


PAIRS = pairs_of(*about(90))


def accuracy(router, prompts, best):
    return np.mean(
        [router.names[i] == b for i, b in zip(router.scores(prompts).argmax(1), best, strict=True)]
    )


@pytest.fixture(scope="module")
def bert(models_folder):
    return save_model(models_folder / "bert", kind="Bert", head="MaskedLM", initializer_range=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bert):
    return tmp_path_factory.mktemp("routers") / "router"


@pytest.fixture(scope="module")
def router(bert, folder):
    return train_router(PAIRS, bert, output_dir=str(folder), **HEAD)


@pytest.mark.parametrize("kind", ["chat_model", "bert"])
def test_a_fitted_head_routes_new_prompts(kind, request, tmp_path):
    trained = train_router(PAIRS, request.getfixturevalue(kind), output_dir=str(tmp_path), **HEAD)
    assert accuracy(trained, *about(30, start=500)) > 0.9


@pytest.mark.parametrize("kind", ["chat_model", "bert"])
def test_full_fine_tuning_routes_new_prompts(kind, request, tmp_path):
    backbone, options = (
        request.getfixturevalue(kind),
        {"epochs": 8, "learning_rate": 3e-3, "batch_size": 8},
    )
    trained = train_router(
        PAIRS, backbone, teachers=TEACHERS, output_dir=str(tmp_path / "r"), **options
    )
    assert accuracy(trained, *about(30, start=500)) > 0.9
    before = transformers.AutoModel.from_pretrained(backbone).state_dict()
    after = transformers.AutoModel.from_pretrained(trained.path).state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before if "layer" in k)
    assert (
        accuracy(train_router(PAIRS, backbone, **options), *about(30, start=500)) > 0.9
    )  # and without specifications


def test_smaller_passes_and_checkpoints_train_the_same(chat_model, tmp_path, monkeypatch):
    """Accumulated gradients are those of the larger batch; recomputed activations change
    nothing.
    """
    few, options = pairs_of(*about(24)), {"epochs": 2, "learning_rate": 1e-3, "seed": 0}

    def weights(name, **more):
        trained = train_router(few, chat_model, output_dir=str(tmp_path / name), **(options | more))
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            trained.path
        ).state_dict()

    whole = weights("whole", batch_size=12)
    parts = weights("parts", batch_size=3, gradient_accumulation_steps=4)
    recomputed = []
    checkpoint = transformers.modeling_layers.GradientCheckpointingLayer.__call__

    def spy(layer, *args, **kwargs):
        recomputed.append(layer.gradient_checkpointing and layer.training)
        return checkpoint(layer, *args, **kwargs)

    monkeypatch.setattr(transformers.modeling_layers.GradientCheckpointingLayer, "__call__", spy)
    open_backbone = training.open_backbone

    def with_checkpoints(*args):
        model, tokenizer = open_backbone(*args)
        training.checkpoint_activations(model)
        return model, tokenizer

    monkeypatch.setattr(training, "open_backbone", with_checkpoints)
    checkpointed = weights("checkpointed", batch_size=12)
    assert recomputed and all(recomputed)
    assert all(torch.equal(checkpointed[key], weight) for key, weight in whole.items())
    assert all(torch.allclose(parts[key], weight, atol=1e-5) for key, weight in whole.items())
    more_steps = weights("more", batch_size=6)
    assert not all(
        torch.allclose(more_steps[key], weight, atol=1e-5) for key, weight in whole.items()
    )


def test_the_head_is_all_that_a_frozen_backbone_learns(router, bert):
    before, after = (
        transformers.AutoModel.from_pretrained(p).state_dict() for p in (bert, router.path)
    )
    assert all(torch.equal(before[k], after[k]) for k in before if "pooler" not in k)


@pytest.mark.parametrize("turn", [0, 1])
def test_every_turn_of_a_conversation_counts(turn, bert, tmp_path):
    def turns(text):
        texts = [text, "Well."] if turn == 0 else ["Well.", text]
        return [
            {"role": "user", "content": texts[0]},
            {"role": "assistant", "content": "Hm."},
            *user(texts[1]),
        ]

    trained = train_router(
        pairs_of(*about(90, turns=turns)), bert, output_dir=str(tmp_path), **HEAD
    )
    assert accuracy(trained, *about(30, start=500, turns=turns)) > 0.9


def test_others_open_it_without_us(router, folder):
    """Plain transformers classes give the scores of Route, by the teachers' names in our order."""
    prompts, _ = about(6, start=300)
    route = Route(router)({"messages": prompts})
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert [model.config.id2label[i] for i in range(3)] == router.names == NAMES
    assert model.config.label2id == {n: i for i, n in enumerate(NAMES)}
    classify = transformers.pipeline("text-classification", str(folder), top_k=None, device="cpu")
    for i, messages in enumerate(prompts):
        text = messages[0]["content"]
        with torch.no_grad():
            o = model(**tokenizer(text, return_tensors="pt")).logits[0]
        found = {row["label"]: row["score"] for row in classify([text])[0]}
        assert o.softmax(-1).tolist() == pytest.approx(route["router_scores"][i], abs=1e-5)
        assert [found[n] for n in NAMES] == pytest.approx(route["router_scores"][i], abs=1e-5)
        assert max(found, key=found.get) == route["teacher"][i]


def test_the_config_tells_all_and_no_secret(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", "sk-very-secret")
    remote = Teacher(
        "big", name="ant", engine="endpoint", base_url="http://h/v1", api_key_env="THE_KEY"
    )
    teachers = [TEACHERS[0], remote, TEACHERS[2]]
    trained = train_router(
        PAIRS, bert, teachers=teachers, freeze_backbone=True, output_dir=str(tmp_path / "r")
    )
    facts = {
        "student": {"model": "me"},
        "reward": {"alpha": 0.4},
        "metrics": {"hit@1": {"router": 0.5}},
    }
    assert trained.metrics is None
    opened = Router.from_pretrained(trained.record(**facts).path)
    assert opened.metrics == facts["metrics"]
    written = json.loads((tmp_path / "r" / "config.json").read_text())["persyn"]
    assert {k: written[k] for k in facts} == facts
    assert written["training"]["backbone"] == bert
    assert (written["training"]["prompts"], written["training"]["pairs"]) == (90, len(PAIRS))
    assert list(map(teacher_identity, opened.teachers)) == list(map(teacher_identity, teachers))
    assert opened.teachers[1].api_key_env == "THE_KEY"
    assert not any(
        b"sk-very-secret" in f.read_bytes() for f in Path(trained.path).rglob("*") if f.is_file()
    )


def test_it_pickles_and_hashes_by_its_content(router, bert, tmp_path):
    prompts, _ = about(3)
    again = pickle.loads(pickle.dumps(router))
    assert again == router == Router.from_pretrained(router.path)
    assert (
        Hasher.hash(Route(again)) == Hasher.hash(Route(router)) == Hasher.hash(Route(router.path))
    )
    assert np.array_equal(again.scores(prompts), router.scores(prompts))
    # Another training in the same place, different in nothing but the labels of its pairs.
    first = train_router(PAIRS, bert, output_dir=str(tmp_path), **HEAD)
    scores = first.scores(prompts)
    second = train_router(
        pairs_of(*about(90), worst_first=True), bert, output_dir=str(tmp_path), **HEAD
    )
    assert Hasher.hash(first) != Hasher.hash(second)
    assert (second.scores(prompts).argmax(1) != scores.argmax(1)).all()


def test_other_teachers_in_the_same_place(bert, tmp_path):
    train_router(PAIRS, bert, output_dir=str(tmp_path), **HEAD)
    fewer = PAIRS.filter(lambda row: "ant" not in (row["teacher_a"], row["teacher_b"]))
    second = train_router(fewer, bert, output_dir=str(tmp_path), **HEAD).record(
        student={"model": "me"}
    )
    assert second.names == Router.from_pretrained(str(tmp_path)).names == ["zebra", "mole"]
    assert [t.name for t in second.teachers] == ["zebra", "mole"]
    assert second.scores(about(2)[0]).shape == (2, 2)


def without_padding(model, folder):
    """A decoder as many are published: no padding token anywhere."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    loaded.config.pad_token_id = None
    loaded.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("backbone", ["bert", "chat_model", "no padding"])
def test_a_prompts_scores_do_not_depend_on_its_company(backbone, request, chat_model, tmp_path):
    """Trained and asked with prompts of very different length."""
    source = (
        without_padding(chat_model, tmp_path / "b")
        if backbone == "no padding"
        else request.getfixturevalue(backbone)
    )
    prompts, best = about(30)
    prompts[::2] = [user(m[0]["content"] + "!" * 60) for m in prompts[::2]]
    trained = train_router(
        pairs_of(prompts, best), source, epochs=1, learning_rate=1e-3, teachers=TEACHERS
    )
    together = trained.scores(prompts)
    assert together.shape == (30, 3) and together.std() > 0.01
    assert np.allclose(together, np.concatenate([trained.scores([m]) for m in prompts]), atol=1e-4)
    assert np.allclose(together[::-1], trained.scores(prompts[::-1]), atol=1e-4)


@pytest.mark.parametrize("kind", ["Roberta", "Bert", "Llama"])
def test_long_prompts_are_cut_to_what_the_backbone_reads(kind, tmp_path):
    """RoBERTa has 512 places of which two are not for tokens: its tokenizer knows."""
    head = "CausalLM" if kind == "Llama" else "MaskedLM"
    backbone = save_model(tmp_path / "b", kind=kind, head=head, max_position_embeddings=64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(backbone)
    tokenizer.model_max_length = 60
    tokenizer.save_pretrained(backbone)
    long = [user("x" * 300 + "a"), user("x" * 300 + "b"), user("y" * 300)]
    trained = train_router(pairs_of(long, NAMES), backbone, output_dir=str(tmp_path / "r"), **HEAD)
    seen = trained.read(long)[1]  # three prompts are too few for a head that tells them apart
    assert np.isfinite(seen).all()
    assert np.allclose(seen[0], seen[1], atol=1e-3) and not np.allclose(seen[0], seen[2], atol=1e-2)


def test_the_same_training_is_not_done_again(bert):
    def files(path):
        return {f.name: f.stat().st_mtime_ns for f in Path(path).iterdir()}

    first = train_router(PAIRS, bert, **HEAD)
    before = files(first.path)
    again = train_router(
        pairs_of(*about(90)), bert, epochs=7, **HEAD
    )  # a frozen backbone has no epochs
    assert again == first and files(first.path) == before
    assert train_router(PAIRS, bert, seed=1, **HEAD).path != first.path
    assert train_router(pairs_of(*about(90), worst_first=True), bert, **HEAD).path != first.path


def test_teachers_that_no_pair_compares_have_no_output(bert, tmp_path):
    teachers = [Teacher("org/silent", name="silent"), *TEACHERS]
    trained = train_router(
        PAIRS, bert, teachers=teachers, freeze_backbone=True, output_dir=str(tmp_path)
    )
    assert trained.names == NAMES and [t.name for t in trained.teachers] == NAMES
    bare = train_router(PAIRS, bert, freeze_backbone=True, output_dir=str(tmp_path / "bare"))
    assert bare.names == sorted(NAMES) and bare.teachers == []


def test_evaluate_takes_the_rewards_of_rank(router):
    """The measured best is what was planted, so the router hits each time; 'ant' was the best
    before.
    """
    prompts, best = about(3, start=700)
    response = {
        "text": "",
        "finish_reason": "",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "error": "",
    }
    response |= {"quality": 0.0, "learnability": 0.0, "rank": 1}

    def ranked(rewards):
        rows = [
            {
                "prompt_id": str(key),
                "messages": m,
                "responses": [response | {"teacher": n, "reward": r[n]} for n in sorted(r)],
            }
            for key, (m, r) in enumerate(zip(prompts, rewards, strict=True))
        ]
        return Dataset.from_list(rows)

    held_out = ranked([{n: float(n == b) for n in NAMES} | {"stranger": 9.0} for b in best])
    again = held_out.map(
        lambda row: {
            "responses": row["responses"] + [r | {"reward": 0.0} for r in row["responses"]]
        }
    )
    assert np.array_equal(
        rewards_of(again, NAMES), rewards_of(held_out, NAMES) / 2
    )  # of several responses the mean
    metrics = router.evaluate(held_out, ranked([{"ant": 1.0, "zebra": 0.5, "mole": None}] * 3))
    assert metrics["best_single_teacher"] == "ant"
    assert metrics["hit@1"]["router"] == 1 and metrics["reward"]["best single"] == pytest.approx(
        1 / 3
    )


def test_bad_input_is_named(bert, chat_model, tmp_path):
    with pytest.raises(InputError, match=r"pairs: .*at least one pair"):
        train_router(PAIRS.select([]), bert)
    with pytest.raises(InputError, match="'mole'.*'zebra', 'ant'"):
        train_router(PAIRS, bert, teachers=TEACHERS[:2])
    with pytest.raises(InputError, match="'persyn'"):
        Router.from_pretrained(chat_model)
    with pytest.raises(InputError, match="nowhere"):
        Router.from_pretrained(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_its_files_have_the_usual_permissions(umask, bert, tmp_path):
    before = os.umask(umask)
    try:
        train_router(PAIRS, bert, freeze_backbone=True, output_dir=str(tmp_path / "router"))
    finally:
        os.umask(before)
    modes = {f.name: f.stat().st_mode & 0o777 for f in (tmp_path / "router").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == 0o666 & ~umask
