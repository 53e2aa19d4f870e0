"""Bytes of tokens, with real tokenizers that are trained here."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillrs import knowledge as kn
from distillrs.errors import ArgumentError
from distillrs.integrations import transformers as hooks

TEXTS = [
    "Hello world, naïve café 日本 🙂 ok. the cat sat on the mat",
    "  the naïve cat\nsat ",
    "ﬁ ½ Ünder the 日本",
] * 4
SAMPLE = "Hello  naïve ﬁ 🙂 日 the cat "


def trained(kind):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if kind in ("byte pairs", "bytes", "byte pairs, space in front"):
        found = Tokenizer(models.BPE())
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="front" in kind)
        found.decoder = decoders.ByteLevel()
        size = 257 if kind == "bytes" else 300
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        found.train_from_iterator(
            TEXTS,
            trainers.BpeTrainer(
                vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
            ),
        )
        found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    elif kind == "word pieces":
        found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        found.normalizer, found.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        found.decoder = decoders.WordPiece()
        found.train_from_iterator(
            TEXTS, trainers.WordPieceTrainer(vocab_size=70, special_tokens=["[UNK]"], show_progress=False)
        )
    elif kind == "unigram":
        found = Tokenizer(models.Unigram())
        found.normalizer, found.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        found.decoder = decoders.Metaspace()
        settings = {"vocab_size": 60, "special_tokens": ["<unk>"], "unk_token": "<unk>", "show_progress": False}
        found.train_from_iterator(TEXTS, trainers.UnigramTrainer(**settings))
    else:
        found = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        found.decoder = decoders.Sequence(parts)
        fallback = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        found.train_from_iterator(
            ["the cat sat"] * 4, trainers.BpeTrainer(vocab_size=290, special_tokens=fallback, show_progress=False)
        )
    return found


KINDS = ["byte pairs", "bytes", "byte pairs, space in front", "word pieces", "unigram", "byte fallback", "byt5"]


@cache
def tokenizer(kind):
    from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

    if kind == "byt5":
        return ByT5Tokenizer()
    special = {"eos_token": "<s>", "pad_token": "<s>"} if kind.startswith("byte") and kind != "byte fallback" else {}
    return PreTrainedTokenizerFast(tokenizer_object=trained(kind), **special)


def covered(kind, text, **options):
    found = hooks.token_spans(tokenizer(kind), [text], **options)
    data = text.encode()
    tokens = tokenizer(kind).convert_ids_to_tokens(found.input_ids[0].tolist())
    return [
        (token, None if first < 0 else data[first:end])
        for token, (first, end) in zip(tokens, found.spans[0].tolist(), strict=True)
    ]


TEXT = st.text("ab the\n🙂日ïﬁ½'.", max_size=12) | st.text(max_size=6)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(texts=st.lists(TEXT, min_size=1, max_size=3), limit=st.none() | st.integers(2, 6))
def test_spans_follow_each_other_from_the_first_byte(kind, texts, limit):
    found = hooks.token_spans(tokenizer(kind), texts, max_length=limit)
    assert found.input_ids.shape == found.attention_mask.shape == found.spans.shape[:2]
    for row, text in enumerate(texts):
        reached, last = 0, len(text.encode())
        for first, end in found.spans[row].tolist():
            if (first, end) != (-1, -1):
                assert first == reached <= end <= last
                reached = end
        assert (found.spans[row][found.attention_mask[row] == 0] == -1).all()
    # What the core refuses would be raised here.
    kn.token_chunks(found.spans, hooks.token_spans(tokenizer("bytes"), texts).spans)


@pytest.mark.parametrize("kind", ["byte pairs", "bytes", "byte pairs, space in front", "byt5"])
@settings(max_examples=40)
@given(text=TEXT)
def test_tokens_of_bytes_have_exactly_their_own(kind, text):
    data = text.encode(errors="replace")
    found = hooks.token_spans(tokenizer(kind), [text]).spans[0].tolist()
    pieces = hooks.token_bytes(tokenizer(kind))
    ids = tokenizer(kind)(text)["input_ids"]
    own = [(span, pieces[id]) for span, id in zip(found, ids, strict=True) if span[0] >= 0]
    joined = b"".join(piece for _, piece in own)
    assert joined in (data, b" " + data)
    for place, ((first, end), piece) in enumerate(own):
        assert data[first:end] == (piece[1:] if place == 0 and joined != data else piece)
    if kind in ("bytes", "byt5"):
        assert [end - first for (first, end), _ in own] == [1] * len(data)


def test_known_texts_are_cut_as_written_here():
    assert [piece for _, piece in covered("word pieces", "the  cat ")] == [b"the", b"  cat"]
    assert covered("unigram", "ﬁ")[0][1] == b""
    assert b"".join(piece for _, piece in covered("unigram", SAMPLE)) == SAMPLE.encode()
    assert [piece for token, piece in covered("byte fallback", "🙂 the") if token.startswith("<0x")] == [
        b"\xf0",
        b"\x9f",
        b"\x99",
        b"\x82",
    ]
    assert covered("byte pairs", "<s>the", add_special_tokens=True)[0] == ("<s>", None)
    assert covered("byte pairs", "a<s>")[-1] == ("<s>", b"<s>")
    assert (
        covered("byte pairs", "naï", add_special_tokens=False, max_length=2)
        == covered("byte pairs", "naï", add_special_tokens=False)[:2]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_two_tokenizers_has_chunks_that_both_reach(kind, monkeypatch):
    collate = hooks.AcrossTokenizers(tokenizer("bytes"), tokenizer(kind), max_length=64, teacher_max_length=64)
    texts = ["the cat sat on the mat", "naïve 🙂 ok"]
    found = collate([{"text": text} for text in texts])
    spans = [hooks.token_spans(tokenizer(each), texts) for each in ("bytes", kind)]
    for row in range(2):
        ends = []
        for side, name in zip(spans, ("chunks", "teacher_chunks"), strict=True):
            numbers = found[name][row]
            ends.append([int(side.spans[row][numbers == each, 1].max()) for each in range(int(numbers.max()) + 1)])
        assert ends[0] == ends[1]
        assert ends[0][-1] == len(texts[row].encode())
    assert torch.equal(found["labels"] == -100, found["attention_mask"] == 0)
    with pytest.raises(ArgumentError, match=r"^examples\[1\]: got \"NoneType for 'text'\""):
        collate(["a", {"body": "b"}])
    monkeypatch.setattr(tokenizer(kind), "truncation_side", "left")
    assert len(hooks.token_spans(tokenizer(kind), texts).spans) == 2
    with pytest.raises(ArgumentError, match=r"^tokenizer: got"):
        hooks.token_spans(tokenizer(kind), texts, max_length=4)


def test_vocabularies_are_bytes_with_their_leading_space():
    pairs, words, unigram = (hooks.token_bytes(tokenizer(kind)) for kind in ("byte pairs", "word pieces", "unigram"))
    places = {kind: tokenizer(kind).get_vocab() for kind in ("byte pairs", "word pieces", "unigram", "byte fallback")}
    assert pairs[places["byte pairs"]["Ġthe"]] == b" the"
    assert pairs[places["byte pairs"]["<s>"]] is None
    assert words[places["word pieces"]["the"]] == b" the"
    assert words[places["word pieces"]["##t"]] == b"t"
    assert b" " in unigram
    fallback = hooks.token_bytes(tokenizer("byte fallback"))
    assert fallback[places["byte fallback"]["<0xE2>"]] == b"\xe2"
    shared = kn.shared_tokens(pairs, words)
    assert int(shared[places["byte pairs"]["Ġthe"]]) == places["word pieces"]["the"]
    mask = hooks.begins_word(tokenizer("byte pairs"), 400)
    assert mask[places["byte pairs"]["Ġthe"]]
    assert mask[0]
    assert not mask[places["byte pairs"]["e"]]
    assert len(mask) == 400


def test_what_cannot_be_read_is_refused():
    class Slow:
        is_fast = False
        added_tokens_decoder: dict = {}  # noqa: RUF012

        def __call__(self, text, **settings):
            return {"input_ids": [0], "special_tokens_mask": [0]}

        def convert_ids_to_tokens(self, ids):
            return ["word"]

    with pytest.raises(ArgumentError, match="tokenizer: got 'Slow'"):
        hooks.token_spans(Slow(), ["other"])
    with pytest.raises(ArgumentError, match="texts"):
        hooks.token_spans(tokenizer("bytes"), "one")
    with pytest.raises(ArgumentError, match="max_length"):
        hooks.token_spans(tokenizer("bytes"), ["one"], max_length=0)
    with pytest.raises(ArgumentError, match="size"):
        hooks.begins_word(tokenizer("bytes"), 3)


def test_the_trainer_of_transformers_takes_such_batches(tmp_path):
    import transformers

    from distillrs import recipes

    def model(vocabulary, width, seed):
        torch.manual_seed(seed)
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "head_dim": 8}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=vocabulary, **sizes, **heads))

    class Trainer(hooks.Distil, transformers.Trainer):
        pass

    own, other = tokenizer("bytes"), tokenizer("unigram")
    boundary = kn.Boundary(hooks.begins_word(own), hooks.begins_word(other), 0.0)
    student = model(len(own), 16, 0)
    before = student.lm_head.weight.detach().clone()
    objective = recipes.alm(student, model(len(other), 24, 1), boundary=boundary, balance_layer="lm_head")
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    sizes = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    arguments = transformers.TrainingArguments(
        str(tmp_path), remove_unused_columns=False, dataloader_pin_memory=False, **quiet, **sizes
    )
    texts = [{"text": "the cat sat on the mat"}, {"text": "naïve"}] * 4
    collate = hooks.AcrossTokenizers(own, other)
    trainer = Trainer(args=arguments, train_dataset=texts, data_collator=collate, objective=objective)
    trainer.train()
    assert {"term/chunks", "term/task"} <= set(trainer.state.log_history[0])
    assert not torch.equal(student.lm_head.weight, before)
