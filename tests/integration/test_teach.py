"""``distillrs teach`` with a real, tiny model: written rows are the model's, and any interruption only costs time."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

from distillrs import cli  # noqa: E402  # after the environment that transformers reads at import
from distillrs.cli import exit_codes  # noqa: E402
from distillrs.errors import ArgumentError, DataError, SchemaMismatch  # noqa: E402
from distillrs.integrations import transformers as integration  # noqa: E402
from distillrs.ops import TopK  # noqa: E402
from distillrs.trajectory import UNCHECKED, TeacherCache, key_of  # noqa: E402

TEXTS = [f"the grüne fox number {number} jumps over {'very ' * (number % 7)}lazy dogs" for number in range(23)]


def make_model(folder, seed=0):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    torch.manual_seed(seed)
    settings = {"vocab_size": 310, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = transformers.LlamaConfig(**settings, **heads, attention_dropout=0.5, initializer_range=0.4)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in [*TEXTS, TEXTS[3]]))
    return path


def check(path, folder, texts, max_length=32, k=8):
    """Every row against a pass of its document alone."""
    model, tokenizer = integration.load(folder)
    mark = integration.fingerprint(model, tokenizer, max_length=max_length)
    with TeacherCache.open(path, mark) as cache:
        assert len(cache) == len(texts)
        assert cache.conflicts == []
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                logits = model(input_ids=ids).logits[0]
            assert int(cache.lengths([key_of(text)])) == len(logits)
            found = cache.gather(cache.index([key_of(text)]) + torch.arange(len(logits)))
            due = TopK.from_logits(logits, k, cache.temperatures)
            # Neighbours may change places where padding moves the last bit.
            exact = logits.log_softmax(-1).gather(-1, found.ids)
            torch.testing.assert_close(found.log_probs, exact, rtol=0, atol=0.05)
            torch.testing.assert_close(found.tail_log_mass, due.tail_log_mass, rtol=0, atol=0.02)
            assert (found.ids == due.ids).float().mean() > 0.95


def run(capsys, *words):
    code = cli.main(["teach", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_rows_are_those_of_the_model_alone(folder, texts, tmp_path, capsys):
    words = ("--model", folder, "--text", texts, "--out", tmp_path / "c", "--k", 8, "--max-length", 32)
    code, out, err = run(capsys, *words, "--temperatures", 1, 2, "--batch-size", 4, "--json")
    assert code == exit_codes.SUCCESS, err
    found = json.loads(out)
    assert found["documents"] == found["written"] == len(TEXTS)
    assert found["tokens"] == found["tokens_written"] > 100
    assert found["bytes_per_token"] > found["row_bytes"]
    check(tmp_path / "c", folder, TEXTS)
    # Again: nothing is left to do. The summary is for people this time.
    code, out, _ = run(capsys, *words, "--temperatures", 1, 2)
    assert code == exit_codes.SUCCESS
    assert "0 documents written now, 23 there before" in " ".join(out.split())
    # What the store's own command says of it.
    assert cli.main(["store", "info", str(tmp_path / "c")]) == exit_codes.SUCCESS
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("teacher cache 23 documents", "bytes a token", "the likeliest 8 of 310", "1.0, 2.0", "fingerprint"):
        assert part in shown
    assert cli.main(["store", "info", str(tmp_path / "c"), "--json"]) == exit_codes.SUCCESS
    cache = json.loads(capsys.readouterr().out)["cache"]
    assert (cache["documents"], cache["rows"], cache["conflicts"]) == (23, found["tokens"], 0)


def test_documents_are_cut_and_counted(folder, texts, tmp_path, capsys):
    words = ("--model", folder, "--text", texts, "--out", tmp_path / "c", "--k", 8, "--max-length", 9)
    code, out, _ = run(capsys, *words, "--json")
    assert code == exit_codes.SUCCESS
    _, tokenizer = integration.load(folder)
    due = sum(len(tokenizer(text)["input_ids"]) > 9 for text in TEXTS)
    assert json.loads(out)["truncated"] == due > 0
    check(tmp_path / "c", folder, TEXTS, max_length=9)
    code, _, err = run(capsys, *words[:-1], 10)
    assert code == exit_codes.USAGE
    assert "fingerprint" in err


def test_shares_of_many_processes_make_one_cache(folder, texts, tmp_path, capsys):
    words = ("--model", folder, "--text", texts, "--out", tmp_path / "c", "--k", 8, "--max-length", 32, "--json")
    counts = []
    for shard in ("0/3", "2/3", "1/3"):
        code, out, _ = run(capsys, *words, "--shard", shard)
        assert code == exit_codes.SUCCESS
        counts.append(json.loads(out)["written"])
    assert counts == [8, 7, 8]
    check(tmp_path / "c", folder, TEXTS)
    code, _, err = run(capsys, *words, "--shard", "3/3")
    assert code == exit_codes.USAGE
    assert "shard: got '3/3'" in err


KILLED = """
import sys, time
from distillrs import cli
from distillrs.integrations.transformers import teaching

append = teaching.TeacherCache.append
count = 0

def slow(self, *arguments, **settings):
    global count
    count += 1
    done = append(self, *arguments, **settings)
    self.flush()
    print("written", count, flush=True)
    time.sleep(0.05)
    return done

teaching.TeacherCache.append = slow
sys.exit(cli.main(["teach", *sys.argv[1:]]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM"])
def test_a_killed_run_goes_on_where_it_stopped(folder, texts, tmp_path, capsys, kind):
    words = ["--model", folder, "--text", texts, "--out", tmp_path / "c", "--k", 8, "--max-length", 32, "--json"]
    words = list(map(str, words))
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, *words], stdout=-1, stderr=-1, text=True, env=os.environ.copy()
    )
    assert child.stdout is not None
    for _ in range(6):
        assert child.stdout.readline().startswith("written")
    child.send_signal(getattr(signal, kind))
    _, errors = child.communicate(timeout=60)
    assert child.returncode == (-signal.SIGKILL if kind == "SIGKILL" else exit_codes.TERMINATED)
    assert kind == "SIGKILL" or "go on with:" in errors
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        there = len(cache)
    assert 6 <= there < len(TEXTS)
    code, out, _ = run(capsys, *words)
    assert code == exit_codes.SUCCESS
    assert json.loads(out)["written"] == len(TEXTS) - there
    check(tmp_path / "c", folder, TEXTS)


def test_byte_offsets_find_every_token_in_the_text(folder, tmp_path):
    model, tokenizer = integration.load(folder)
    integration.teach(model, tokenizer, [*TEXTS[:3], ""], tmp_path / "c", k=4, max_length=20, offsets=True)
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        for text in TEXTS[:3]:
            encoded = tokenizer(text, truncation=True, max_length=20)["input_ids"]
            offsets = cache.offsets(key_of(text)).tolist()
            assert len(offsets) == len(encoded) + 1
            content = text.encode()
            pieces = [content[a:b] for a, b in itertools.pairwise(offsets)]
            assert b"".join(pieces) == content[: offsets[-1]]
            words = tokenizer.convert_ids_to_tokens(encoded)
            plain = [
                piece.decode() == word.replace("Ġ", " ")
                for piece, word in zip(pieces, words, strict=True)
                if word.isascii() or word.startswith("Ġ")
            ]
            assert sum(plain) >= len(plain) - 2
        assert cache.offsets(key_of("")).tolist() == [0]


def test_the_models_mode_is_put_back_and_dropout_is_off(folder, tmp_path):
    model, tokenizer = integration.load(folder)
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    steps = []
    taught = integration.teach(model, tokenizer, TEXTS, tmp_path / "c", k=8, max_length=32, on_progress=steps.append)
    assert [module.training for module in model.modules()] == before
    assert steps[-1].documents == steps[-1].of == taught.documents == 23
    assert steps[-1].tokens == taught.tokens_written
    check(tmp_path / "c", folder, TEXTS)  # a teacher in training mode would have dropped half of its attention


def test_another_model_is_refused(folder, tmp_path):
    model, tokenizer = integration.load(folder)
    integration.teach(model, tokenizer, TEXTS[:2], tmp_path / "c", k=8)
    other, _ = integration.load(make_model(tmp_path / "other", seed=1))
    with pytest.raises(SchemaMismatch, match=r"teacher .* there, .* in use"):
        integration.teach(other, tokenizer, TEXTS[:2], tmp_path / "c", k=8)
    tokenizer.truncation_side = "left"
    with pytest.raises(SchemaMismatch, match=r"template .* there, .* in use"):
        integration.teach(model, tokenizer, TEXTS[:2], tmp_path / "c", k=8)


def test_arguments_that_do_not_fit_are_refused(folder, tmp_path):
    model, tokenizer = integration.load(folder)
    several = ({"shard": shard} for shard in ((2, 2), "0/1", (0, 1, 2), (0.0, 1)))
    for wrong in ({"max_length": 0}, {"batch_size": 1.5}, {"k": 400}, *several):
        with pytest.raises(ArgumentError, match=f"^{next(iter(wrong))}"):
            integration.teach(model, tokenizer, TEXTS, tmp_path / "c", **wrong)
    with pytest.raises(ArgumentError, match="texts"):
        integration.teach(model, tokenizer, "text", tmp_path / "c")
    with pytest.raises(ArgumentError, match=r"^texts: got 'generator'"):
        integration.teach(model, tokenizer, (text for text in TEXTS), tmp_path / "c")
    with pytest.raises(DataError, match="holds no model"):
        integration.load(tmp_path)


def test_documents_beyond_the_models_positions_are_refused(folder, tmp_path):
    _, tokenizer = integration.load(folder)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=310, n_positions=16, **sizes))
    with pytest.raises(ArgumentError, match=r"^max_length: got '512, with a document of \d+ tokens', allowed is .* 16"):
        integration.teach(model, tokenizer, ["short", "qz" * 40], tmp_path / "c", k=4)
    assert integration.teach(model, tokenizer, ["qz" * 40], tmp_path / "d", k=4, max_length=16).tokens == 16


def test_folders_that_lack_weights_are_refused(folder, tmp_path):
    """Weights that are not there would be drawn at random, and taught."""
    cut, bodied, tied = (tmp_path / name for name in ("cut", "bodied", "tied"))
    shutil.copytree(folder, cut)
    (weights,) = cut.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="has no causal language model with a tokenizer"):
        integration.load(cut)
    model, tokenizer = integration.load(folder)
    model.model.save_pretrained(bodied)
    tokenizer.save_pretrained(bodied)
    with pytest.raises(DataError, match=r"lacks 1 of the model's weights, such as lm_head\.weight"):
        integration.load(bodied)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=310, **sizes)).save_pretrained(tied)
    tokenizer.save_pretrained(tied)
    whole = integration.load(tied)[0]
    assert whole.lm_head.weight is whole.transformer.wte.weight


def test_texts_of_files(tmp_path):
    plain = tmp_path / "a.txt"
    plain.write_text("one\ntwo\n\n\n  \nthree\u2028 four\n")
    assert integration.read_texts(plain) == ["one\ntwo", "three\u2028 four"]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"body": "a\\u2028b"}\n"c"\n\n')
    assert integration.read_texts(lines, field="body") == ["a\u2028b", "c"]
    with pytest.raises(DataError, match=r"line 1 has no text in 'text'; its fields are body"):
        integration.read_texts(lines)
    for content, message in (("{", "line 1 is no JSON"), ("3", "line 1 has no text"), ("", "has no text")):
        lines.write_text(content)
        with pytest.raises(DataError, match=message):
            integration.read_texts(lines)
    for path, content in ((plain, "one"), (lines, '{"text": "one"}')):
        path.write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert integration.read_texts(path) == ["one"]
    lines.write_text('"a"\n{"text": "a\\ud800"}')
    with pytest.raises(DataError, match="line 2 has half a character"):
        integration.read_texts(lines)
    lines.write_text('"\\ud83d\\ude00"')
    assert integration.read_texts(lines) == ["\U0001f600"]
    with pytest.raises(DataError, match="is a folder"):
        integration.read_texts(tmp_path)
    lines.write_bytes(b"\xff")
    with pytest.raises(DataError, match="UTF-8"):
        integration.read_texts(lines)
    with pytest.raises(DataError, match="is not there"):
        integration.read_texts(tmp_path / "b.txt")


def test_missing_things_have_exit_codes(folder, texts, tmp_path, capsys):
    assert run(capsys, "--model", tmp_path, "--text", texts, "--out", tmp_path / "c")[0] == exit_codes.MISSING
    assert run(capsys, "--model", folder, "--text", tmp_path / "x", "--out", tmp_path / "c")[0] == exit_codes.MISSING
    wrong = ("--model", folder, "--text", texts, "--out", tmp_path / "c", "--dtype", "int8")
    code, _, err = run(capsys, *wrong)
    assert code == exit_codes.USAGE
    assert "dtype: got 'int8'" in err
