"""Whose tokens a teacher cache keeps: values against dense ones, and no cache of two kinds."""

import pytest
import torch

from distillrs.errors import ArgumentError, SchemaMismatch
from distillrs.ops import ForwardKL, TopK, row_divergence, sparse_row_divergence
from distillrs.trajectory import UNCHECKED, Schema, Store, TeacherCache, union_support

V, K = 60, 6


def logits(tokens, seed=0):
    return torch.randn(tokens, V, generator=torch.Generator().manual_seed(seed)) * 3


def make(path, **settings):
    settings = {
        "vocabulary": V,
        "k": K,
        "fingerprint": UNCHECKED,
        "temperatures": (1.0, 2.0),
        "code": "f16",
        **settings,
    }
    return TeacherCache.create(path, **settings)


def chosen(support, tokens=5):
    student = logits(tokens, 9).topk(K).indices
    if support == "student":
        return student
    return union_support(logits(tokens).topk(K // 2).indices, student[:, : K // 2])


@pytest.mark.parametrize("support", ["student", "union"])
def test_rows_are_the_dense_ones_at_the_chosen_ids(tmp_path, support):
    ids = chosen(support)
    with make(tmp_path / "c", support=support) as cache:
        assert cache.support == support
        cache.append("a", logits(5), ids=ids)
    cache = TeacherCache.open(tmp_path / "c", UNCHECKED)
    assert cache.support == support
    found = cache.gather(cache.index(["a"]) + torch.arange(5))
    exact = logits(5).double().log_softmax(-1)
    for row in range(5):
        there = found.log_probs[row] > -torch.inf
        due = ids[row][ids[row] >= 0]
        assert sorted(found.ids[row][there].tolist()) == sorted(due.tolist())
        torch.testing.assert_close(
            found.log_probs[row][there].double(), exact[row][found.ids[row][there]], atol=0.02, rtol=2e-3
        )
        # The mass of what was kept, and of all that was not.
        kept = float(exact[row][due].exp().sum())
        assert float(found.log_probs[row].exp().sum()) == pytest.approx(kept, abs=4e-3)
        assert float(found.tail_log_mass[row].exp()) == pytest.approx(1 - kept, abs=4e-3)
    partition = (logits(5).double().log_softmax(-1) / 2).logsumexp(-1)
    torch.testing.assert_close(found.log_partition[2.0].double(), partition, atol=0.02, rtol=2e-3)


def test_the_union_charges_the_student_for_what_the_teacher_s_own_hide(tmp_path):
    """More events, and so a divergence that is nearer to the dense one, for the same rows."""
    teacher, student = logits(40), logits(40, 9)
    dense = float(row_divergence(student, teacher, ForwardKL()))
    found = {}
    for support, ids in (
        ("teacher", None),
        ("union", union_support(*(x.topk(K // 2).indices for x in (teacher, student)))),
    ):
        k = K // 2 if ids is None else K
        with make(tmp_path / support, support=support, k=k) as cache:
            cache.append("a", teacher, ids=ids)
            rows = cache.gather(cache.index(["a"]) + torch.arange(40))
        found[support] = float(sparse_row_divergence(student, rows, ForwardKL()))
    assert found["teacher"] < found["union"] < dense


def test_the_union_has_every_id_once_and_the_teacher_s_first():
    teacher = torch.tensor([[4, 2, 7], [1, -1, -1]])
    student = torch.tensor([[2, 9], [1, 1]], dtype=torch.int32)
    found = union_support(teacher, student)
    assert found.dtype == torch.int64
    assert found.tolist() == [[4, 2, 7, 9, -1], [1, -1, -1, -1, -1]]
    tops = [TopK.from_logits(logits(7, seed), 3) for seed in (0, 9)]
    ids = union_support(*tops)
    for row, (first, second) in enumerate(zip(tops[0].ids.tolist(), tops[1].ids.tolist(), strict=True)):
        due = first + [each for each in second if each not in first]
        assert ids[row].tolist() == due + [-1] * (6 - len(due))
    absent = TopK(torch.tensor([[3, 5]]), torch.tensor([[-0.5, -torch.inf]]), torch.tensor([-1.0]))
    assert union_support(absent, torch.tensor([[5]])).tolist() == [[3, 5, -1]]
    assert union_support(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.int64)).shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((3, torch.tensor([[1]])), "teacher"),
        ((torch.tensor([[1.0]]), torch.tensor([[1]])), "teacher"),
        ((torch.tensor([[1]]), torch.tensor(1)), "student"),
        ((torch.tensor([[1]]), torch.tensor([[1], [2]])), "student"),
    ],
)
def test_what_are_no_ids_has_no_union(arguments, name):
    with pytest.raises(ArgumentError, match=rf"^{name}: got"):
        union_support(*arguments)


def test_documents_of_another_kind_are_refused_by_name(tmp_path):
    with make(tmp_path / "teacher") as cache:
        with pytest.raises(ArgumentError, match=r'^ids: got .* support="teacher"'):
            cache.append("a", logits(5), ids=chosen("student"))
        assert len(cache) == 0
    for support in ("student", "union"):
        with make(tmp_path / support, support=support) as cache:
            with pytest.raises(ArgumentError, match=rf'^ids: got None.* support="{support}"'):
                cache.append("a", logits(5))
            for wrong in (-2, V):
                with pytest.raises(ArgumentError, match=rf"^ids: got {wrong}"):
                    cache.append("a", logits(5), ids=chosen(support).clone().fill_(wrong))
            with pytest.raises(ArgumentError, match=r"twice in row 0"):
                cache.append("a", logits(5), ids=torch.zeros_like(chosen(support)))
            assert len(cache) == 0


def test_a_top_k_has_its_own_ids_in_every_cache(tmp_path):
    for support in ("teacher", "student", "union"):
        with make(tmp_path / support, support=support) as cache:
            assert cache.append("a", TopK.from_logits(logits(5), K, (1.0, 2.0)))


def test_a_cache_of_another_support_is_not_joined(tmp_path):
    kinds = ("teacher", "student", "union")
    for there in kinds:
        make(tmp_path / there, support=there).close()
        for mine in kinds:
            if mine == there:
                make(tmp_path / there, support=mine, exist_ok=True).close()
                continue
            with pytest.raises(SchemaMismatch, match=rf"support of .* differs: '{there}' there, '{mine}' in use"):
                make(tmp_path / there, support=mine, exist_ok=True)


def test_a_support_that_is_none_is_refused(tmp_path):
    for wrong in ("both", None, 3, ["teacher"]):
        with pytest.raises(ArgumentError, match=r"^support: got"):
            make(tmp_path / "c", support=wrong)
    with pytest.raises(ArgumentError, match=r"^support: got 'student', allowed is \"teacher\" with k=0"):
        make(tmp_path / "c", support="student", k=0, sampled=True, temperatures=(1.0,))
    assert not (tmp_path / "c").exists()


def rewritten(path, **settings):
    """The same store with other words in its settings, as an older build or a stranger would have written them."""
    whole = make(path.with_name("whole"))
    form, columns = whole._store.metadata["teacher_cache"], dict(whole._store.schema.items())
    whole.close()
    Store.create(path, Schema(**columns), {"teacher_cache": {**form, **settings}}).close()
    return path


def test_a_cache_from_before_the_choice_is_the_teacher_s(tmp_path):
    path = rewritten(tmp_path / "old")
    assert "support" not in Store.open(path).metadata["teacher_cache"]
    assert TeacherCache.open(path, UNCHECKED).support == "teacher"
    with make(path, exist_ok=True) as cache:
        assert cache.append("a", logits(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"support": "both"}, "support='both'"),
        ({"support": ["student"]}, "support="),
        ({"support": None}, "support=None"),
        ({"offsets": "x"}, "offsets='x'"),
        ({"offsets": 1}, "offsets=1"),
        ({"offsets": True}, "offsets=True, and columns"),
        ({"temperatures": [1.0, 1.0]}, "temperatures="),
        ({"temperatures": [1.0, "2"]}, "temperatures="),
        ({"temperatures": "12"}, "temperatures="),
        ({"temperatures": [2.0, 1.0]}, "temperatures="),
        ({"temperatures": [True, 2.0]}, "temperatures="),
        ({"temperatures": None}, "temperatures="),
    ],
)
def test_settings_of_a_stranger_are_refused(tmp_path, settings, message):
    path = rewritten(tmp_path / "hostile", **settings)
    with pytest.raises(SchemaMismatch, match=message):
        TeacherCache.open(path, UNCHECKED)
    with pytest.raises(SchemaMismatch):
        make(path, exist_ok=True)


def test_logits_elsewhere_are_packed_there(tmp_path):
    """Where the logits are on an accelerator the same rows are selected there: a few numbers a row travel."""
    ids = chosen("union")
    with make(tmp_path / "c", support="union", sampled=True) as cache:
        drawn = torch.tensor([3, 1, 4, 1, 5])
        cache.append("here", logits(5), ids=ids, sampled=drawn)
        packed, tokens = cache._pack_on_device(logits(5), ids, drawn)
        cache._append_document("there", packed, tokens, {})
        places = torch.cat([cache.index([key]) + torch.arange(5) for key in ("here", "there")])
        found, drawn_again = cache.gather(places), cache.gather_sampled(places)
    assert torch.equal(found.ids[:5], found.ids[5:])
    torch.testing.assert_close(found.log_probs[:5], found.log_probs[5:], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.tail_log_mass[:5], found.tail_log_mass[5:], atol=2e-3, rtol=0)
    torch.testing.assert_close(found.log_partition[2.0][:5], found.log_partition[2.0][5:], atol=1e-4, rtol=0)
    assert torch.equal(drawn_again.ids[:5], drawn_again.ids[5:])


def test_the_vocabulary_stays_where_the_logits_are(tmp_path, monkeypatch):
    """Whatever goes to the CPU beside chosen ids is no wider than a row of the cache."""

    class There(torch.Tensor):
        """A tensor that says it is on a device, and counts what is brought from there."""

        brought = 0

        @property
        def device(self):
            return torch.device("cuda")

        def cpu(self, *_):
            There.brought += self.numel()
            return self.as_subclass(torch.Tensor)

    seen = []
    monkeypatch.setattr(
        TeacherCache, "_pack_on_device", lambda self, logits, chosen, drawn: seen.append(chosen) or (b"", 0)
    )
    with make(tmp_path / "c", support="student") as cache:
        assert cache._pack(logits(5).as_subclass(There), None, chosen("student")) == (b"", 0)
    assert torch.equal(seen[0], chosen("student"))
    assert There.brought == 0
