"""An answer's white space is the model's, whatever its tokenizer's files ask for."""

import json

from conftest import make_tokenizer, save_model

from persyn_datasets import Generate, Sampling, Teacher

# transformers 4 cleaned by the first; 5 does so for tokenizers of this kind by both.
CLEAN = (
    "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
)


def test_spaces_before_punctuation_stay(tmp_path):
    plain, cleaning = tmp_path / "plain", tmp_path / "cleaning"
    for folder in (plain, cleaning):
        save_model(folder)
    tokenizer = make_tokenizer("{{ messages[0]['content'] }}")
    tokenizer.save_pretrained(plain)
    tokenizer.save_pretrained(cleaning)
    config = cleaning / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict.fromkeys(CLEAN, True)))
    prompts = [[{"role": "user", "content": f"{i} is a , b !"}] for i in range(200)]
    ids = [str(i) for i in range(200)]
    sampling = Sampling(temperature=1.0, max_tokens=200, seed=0)

    def answers(folder):
        teacher = Teacher(str(folder), name="t", engine="transformers", sampling=sampling)
        rows = Generate([teacher])({"prompt_id": ids, "messages": prompts})["responses"]
        return [row[0]["text"] for row in rows]

    found = answers(cleaning)
    assert found == answers(plain)
    # Some would have been changed, so that this can fail.
    assert any(tokenizer.clean_up_tokenization(text) != text for text in found)
