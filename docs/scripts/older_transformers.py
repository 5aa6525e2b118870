"""Opens routers of several kinds in another version of transformers, and counts other choices.

    python docs/scripts/older_transformers.py /path/to/python-with-transformers-4.57

The routers are tiny and random, made here, and recorded in as a build does.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "router")]

TEXTS = [
    f"{word} of {i} is a text, and {'so on ' * (i % 12)}"
    for i, word in enumerate(["What", "Tell", "Name", "Why"] * 8)
]
READER = """
import json, sys
import torch, transformers
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
options = dict(truncation=True, max_length=128, return_tensors="pt", return_token_type_ids=False)
with torch.inference_mode():
    scores = [model(**tokenizer(text, **options)).logits[0].float().tolist() for text in texts]
print(json.dumps([transformers.__version__, scores]))
"""


def main(python: str) -> None:
    import numpy as np
    from test_backbones import KINDS, ROPES, save_backbone, train, user

    kinds = {kind: {"rope_parameters": rope} | more for kind, (rope, _, more) in ROPES.items()}
    for kind, more in (kinds | {"Bert": KINDS["Bert"]}).items():
        with tempfile.TemporaryDirectory() as place:
            router = train(save_backbone(Path(place) / "b", kind, more), Path(place) / "r")
            router = router.record(note=1)
            ours = router.scores([user(text) for text in TEXTS])
            out = subprocess.run(
                [python, "-c", READER, router.path, json.dumps(TEXTS)],
                check=True,
                capture_output=True,
                text=True,
            )
        theirs, scores = json.loads(out.stdout.splitlines()[-1])
        other = int((np.array(scores).argmax(-1) != ours.argmax(-1)).sum())
        print(
            f"{kind}: {other} of {len(TEXTS)} other choices in transformers {theirs} than in "
            f"{version('transformers')}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
