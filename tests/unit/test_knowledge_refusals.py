"""What would fail deep inside, or not at all, is refused where it is written, with its name."""

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import knowledge as kn
from distillrs import ops, recipes, schedule
from distillrs.errors import ArgumentError
from distillrs.knowledge import Labels, Objective, Output, Term

LOGITS = Output("logits")
NAN = torch.full((6,), float("nan"))
TERM = Term(LOGITS, target=Labels())


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def frozen():
    return dr.Frozen(network(1))


def value(term, teacher=None, labels=None, step=0):
    torch.manual_seed(2)
    x = torch.randn(6, 5).double()
    labels = torch.arange(6) % 3 if labels is None else labels
    return Objective(network(), frozen() if teacher is None else teacher, [term])((x, labels, torch.arange(6)), step)


def decoupled(labels):
    return value(Term(LOGITS, divergence=kn.DecoupledKL()), labels=torch.tensor(labels))


def mixed(share):
    return value(Term(LOGITS, target=kn.Arithmetic(share)), step=dr.Step(3, total=4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective(network(), None, TERM), "^terms: got 'Term', allowed is a list of"),
        (lambda: Objective(network(), None, stages=kn.Stage([TERM])), "^stages: got 'Stage', allowed is a list of"),
        (lambda: kn.Stage(TERM), "^terms: got 'Term', allowed is a list of"),
        (lambda: Objective(network(), {"a.b": frozen()}, [Term(LOGITS)]), "^teachers: got 'a.b', allowed is"),
        (lambda: Objective(network(), {"keys": frozen()}, [Term(LOGITS)]), "^teachers: got 'keys', allowed is"),
        (lambda: Objective(network(), {"training": frozen()}, [Term(LOGITS)]), "^teachers: got 'training'"),
        (lambda: Objective(network(), {"": frozen()}, [Term(LOGITS)]), "^teachers: got ''"),
        (lambda: Objective(network(), {3: frozen()}, [Term(LOGITS)]), "^teachers: got 3"),
        (lambda: kn.Ensemble(frozen()), "^members: got 'Frozen', allowed is a list of"),
        (lambda: recipes.attention_transfer(network(), network(), ["ab"]), "^layers: got 'ab', allowed is pairs"),
        (lambda: recipes.attention_transfer(network(), network(), "ab"), "^layers: got 'ab', allowed is pairs"),
        (lambda: recipes.attention_transfer(network(), network(), []), r"^layers: got \[\], allowed is pairs"),
        (lambda: recipes.attention_transfer(network(), network(), [("a", "b", "c")]), "^layers: got"),
        (lambda: kn.InfoNCE("a"), "^temperature: got 'a', allowed is a number above 0"),
        (lambda: kn.InfoNCE(float("nan")), "^temperature: got nan"),
        (lambda: kn.NoiseContrast(4, 3, temperature=None), "^temperature: got None"),
        (lambda: kn.NoiseContrast(4, 3, momentum="half"), "^momentum: got 'half'"),
        (lambda: kn.Pooled(0), "^size: got 0, allowed is None, a positive integer"),
        (lambda: kn.Pooled(True), "^size: got True"),
        (lambda: kn.Pooled([2, 0]), r"^size: got \[2, 0\]"),
        (lambda: kn.Pooled("2"), "^size: got '2'"),
        (lambda: kn.Pooled([2, 2])(torch.ones(1, 1, 4), torch.ones(1, 1, 4)), r"^size: got \[2, 2\].* of 1 spatial"),
        (lambda: kn.AttentionMap(0.5), "^p: got 0.5, allowed is a number from 1"),
        (lambda: kn.AttentionMap("2"), "^p: got '2'"),
        (lambda: kn.SelfPaced("a"), "^threshold: got 'a'"),
        (lambda: kn.Labels("a"), "^smoothing: got 'a'"),
        (lambda: kn.Arithmetic("a"), "^share: got 'a'"),
        (lambda: kn.SmoothL1("a"), "^beta: got 'a'"),
        (lambda: kn.LossRatio("kd", "a"), "^ratio: got 'a'"),
        (lambda: value(Term(LOGITS, temperature=kn.PerRow(lambda view: 2.0))), "^function: got '2.0 from PerRow"),
        (lambda: mixed(kn.PerRow(lambda view: 0.5)), "^function: got '0.5 from PerRow"),
        (lambda: mixed(schedule.LinearRamp(0.0, 1.5)), "^share: got 1.5, allowed is numbers from 0 to 1 at every step"),
        (lambda: mixed(schedule.Constant(-0.1)), "^share: got -0.1"),
        (lambda: mixed(lambda step: float("nan")), "^share: got nan"),
        (lambda: mixed(torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 1.5])), "^share: got '0.5 to 1.5'"),
        (lambda: mixed(kn.PerRow(lambda view: torch.full((6,), -1.0))), "^share: got '-1 to -1'"),
        (
            lambda: value(Term(LOGITS), kn.SnapshotTable(6, 3).double(), torch.tensor([0, 1, 2, 3, 0, 1])),
            r"^batch\['labels'\]: got 3, allowed is classes from 0 to 2",
        ),
        (
            lambda: value(Term(LOGITS), kn.SnapshotTable(6, 3).double(), torch.tensor([0, 1, 2, -1, 0, 1])),
            r"^batch\['labels'\]: got -1, allowed is classes from 0 to 2",
        ),
        (
            lambda: kn.SnapshotTable(6, 3, process_group="world"),
            "^process_group: got 'str', allowed is None or a group",
        ),
        (lambda: kn.InfoNCE(process_group=1), "^process_group: got 'int'"),
        (lambda: kn.NoiseContrast(4, 3, process_group=True), "^process_group: got 'bool'"),
        (lambda: kn.DecoupledKL("a"), "^alpha: got 'a', allowed is a number from 0"),
        (lambda: kn.DecoupledKL(beta=float("nan")), "^beta: got nan"),
        (lambda: decoupled([0, 1, 2, 3, 0, 1]), "^labels: got 3, allowed is classes from 0 to 2"),
        (lambda: decoupled([0, 1, 2, -1, 0, 1]), "^labels: got -1, allowed is classes from 0 to 2"),
        (lambda: value(Term(LOGITS, divergence=kn.DecoupledKL()), labels=torch.zeros(6)), "^labels: got 'torch.float"),
        (
            lambda: value(Term(LOGITS, divergence=kn.Bernoulli(), temperature=torch.zeros(6))),
            "^temperature: got 'values down to 0.0', allowed is positive, finite numbers",
        ),
        (
            lambda: value(Term(LOGITS, divergence=kn.Bernoulli(), temperature=kn.PerRow(lambda view: -NAN))),
            "^temperature: got 'values down to nan'",
        ),
        (
            lambda: value(Term(LOGITS, target=kn.Arithmetic(0.5), teacher_temperature=torch.full((6,), -2.0))),
            "^teacher_temperature: got 'values down to -2.0'",
        ),
        (
            lambda: value(Term(LOGITS, target=kn.Arithmetic(0.5), teacher_temperature=lambda step: -2.0)),
            "^teacher_temperature: got -2.0",
        ),
        (
            lambda: value(Term(LOGITS, rows=lambda view: torch.tensor([1.0, 0, 1, 1, 1, -5]))),
            "^rows: <lambda>: got 'a weight of -5', allowed is booleans, or numbers from 0",
        ),
        (lambda: Term(LOGITS, normaliser=float("inf")), "^normaliser: got inf"),
        (lambda: Term(LOGITS, normaliser=True), "^normaliser: got True"),
        (lambda: Term(LOGITS, scale=True), "^scale: got True"),
        (lambda: Objective(network(), frozen(), [Term(LOGITS)], balance="0"), "^balance: got '0', allowed is None or"),
        (lambda: Objective(network(), frozen(), [Term(LOGITS)], inputs="x"), "^inputs: got 'x'"),
        (
            lambda: Objective(network(), frozen(), [Term(LOGITS)], withheld="rows"),
            "^withheld: got 'rows', allowed is",
        ),
        (lambda: kn.FrozenTeacher(frozen(), inputs="x"), "^inputs: got 'x'"),
        (lambda: kn.layer_pairs("a", 3), "^student_layers: got 'a'"),
        (lambda: kn.layer_pairs(2, 2.5), "^teacher_layers: got 2.5"),
        (lambda: kn.Projector(2, 2, axis="a"), "^axis: got 'a'"),
        (lambda: kn.EntropyFilter(low="a"), "^low: got 'a', allowed is a number of nats"),
        (lambda: kn.EntropyFilter(high=NAN[0]), "^high: got"),
        (lambda: kn.VocabularyMap(torch.tensor([0, -1]), "a"), "^teacher_vocabulary: got 'a'"),
        (lambda: kn.TextMix({"a": print}, {"a": "x"}), "^shares: got"),
        (lambda: kn.acceptance(torch.ones(2, 3), torch.ones(2, 3), -1.0), "^temperature: got -1.0"),
        (lambda: kn.block_length(0.5, -3), "^draft_length: got -3"),
        (lambda: kn.block_length("a", 3), "^rate: got 'a'"),
        (lambda: kn.speed_up(0.5, 2, "a"), "^cost: got 'a'"),
        (lambda: kn.Corpus.written(["ab"], lambda given, step: {}), r"^inputs\[0\]: got 'str'"),
        (lambda: kn.Corpus.written([{}], lambda given, step: {}, check=lambda fields: "no"), "^check: got 'no'"),
        (lambda: kn.Corpus.written([{}], lambda given, step: {}, check=lambda fields: None), "^check: got None"),
        (
            lambda: value(Term(LOGITS, divergence=kn.Bernoulli(), temperature=lambda step: float("inf"))),
            "^temperature: got inf",
        ),
        (lambda: recipes.alm(network(), network(), hidden=("0", "0"), widths=3), "^widths: got 3"),
        (
            lambda: recipes.alm(network(), network(), boundary="x"),
            "^boundary: got 'str', allowed is None or",
        ),
        (
            lambda: kn.Evolution(lambda step: 1, lambda one, step: one, lambda one: 1.0).load_state_dict(
                {"seed": 0, "population": 50, "tournament": 10}
            ),
            "^state: got",
        ),
    ],
)
def test_arguments_are_refused_by_name(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_numbers_of_other_libraries_are_numbers():
    import numpy

    assert kn.InfoNCE(numpy.float32(0.5)).temperature == 0.5
    with pytest.raises(ArgumentError, match=r"^temperature: got"):
        kn.InfoNCE(numpy.float32("inf"))


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_maps_of_attention_have_a_slope_where_activations_and_whole_maps_are_zero(p):
    maps = torch.randn(3, 2, 4, 4, dtype=torch.float64).relu()
    maps[1] = 0
    maps.requires_grad_()
    found, _ = kn.AttentionMap(p)(maps, maps)
    assert torch.isfinite(torch.autograd.grad(found.square().sum() + found.sum(), maps)[0]).all()
    expected = nn.functional.normalize(maps.abs().pow(p).mean(1).flatten(1), dim=1)
    torch.testing.assert_close(found, expected)


def test_an_example_without_a_label_has_every_class_alike_until_it_was_seen():
    teacher = kn.SnapshotTable(6, 3).double()
    term = Term(LOGITS, divergence=ops.ForwardKL())
    labels = torch.tensor([0, 1, -100, 0, 1, 2])
    rows = []

    class Kept(kn.Target):
        needs_teacher = True

        def log_probs(self, view):
            rows.append(kn.FromTeacher().log_probs(view).exp())
            return kn.FromTeacher().log_probs(view)

    value(Term(LOGITS, divergence=term.divergence, target=Kept()), teacher, labels)
    torch.testing.assert_close(rows[0][2], torch.full((3,), 1 / 3).double())
    torch.testing.assert_close(rows[0][1], torch.tensor([0.0, 1.0, 0.0]).double())


class Wrapper(nn.Module):
    """As torch.compile and checkpoint_wrapper hold what they wrap."""

    def __init__(self, inner, name):
        super().__init__()
        self.add_module(name, inner)
        self.name = name

    def forward(self, x):
        return self._modules[self.name](x)


@pytest.mark.parametrize("inside", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
@pytest.mark.parametrize("pattern", ["0", "0.1", "0.1.*", "*.weight"])
def test_a_stage_trains_what_it_names_under_wrappers_inside_and_outside(inside, pattern):
    def student():
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(nn.Identity(), nn.Linear(5, 4)), nn.Linear(4, 3))

    plain, wrapped = student(), student()
    wrapped[0] = Wrapper(wrapped[0], inside)
    stage = kn.Stage([TERM], trainable=[pattern])
    expected = {id(parameter) for name, parameter in plain.named_parameters() if name in stage.trains(plain)}
    assert 0 < len(expected) < 4
    assert stage.trains(wrapped) == stage.trains(Wrapper(wrapped, "_orig_mod")) == stage.trains(plain)
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    objective = Objective(wrapped, None, stages=[kn.Stage([TERM], 1, trainable=[pattern]), kn.Stage([TERM])])
    objective((x, y), 0, student=Wrapper(wrapped, "_orig_mod"))
    trained = [parameter.requires_grad for parameter in wrapped.parameters()]
    assert trained == [id(parameter) in expected for parameter in plain.parameters()]
    objective((x, y), 1)
    assert all(parameter.requires_grad for parameter in wrapped.parameters())


def test_a_shared_parameter_is_trained_by_any_of_its_names_and_a_part_called_module_is_no_wrapper():
    student = nn.ModuleDict({"module": nn.Linear(3, 3), "head": nn.Linear(3, 3)})
    student["head"].weight = student["module"].weight
    assert kn.Stage([TERM], trainable=["module"]).trains(student) == {"module.weight", "module.bias"}

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = student

        def forward(self, x):
            return self.parts["head"](self.parts["module"](x))

    tied = Tied()
    objective = Objective(tied, None, stages=[kn.Stage([TERM], trainable=["parts.head"])])
    objective((torch.randn(6, 3), torch.arange(6) % 3), 0)
    flags = {name: parameter.requires_grad for name, parameter in tied.named_parameters()}
    assert flags == {"parts.module.weight": True, "parts.module.bias": False, "parts.head.bias": True}


@pytest.mark.filterwarnings("ignore")
def test_snapshots_of_a_compiled_student_do_not_take_its_hooks_along():
    torch._dynamo.reset()
    student = network()
    compiled = torch.compile(student, backend="eager")
    x = torch.randn(6, 5).double()
    terms = [Term("1", divergence=kn.MSE(), name="hidden"), Term(LOGITS, name="outputs")]
    plain = Objective(network(), kn.SnapshotRing(1, 2), terms)
    objective = Objective(student, kn.SnapshotRing(1, 2), terms)
    # The student's hooks are there before the first snapshot is asked.
    kn.record(compiled, [kn.Tap("1")], kn.Inputs((x,)))
    for index in range(3):
        found, expected = objective((x,), index, student=compiled), plain((x,), index)
        torch.testing.assert_close(found.total, expected.total)
        with torch.no_grad():
            for module in (student, plain.student):
                for parameter in module.parameters():
                    parameter.mul_(0.9)
    kn.release(compiled)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "foreign",
    [
        3,
        None,
        {},
        {"taken_at": [1]},
        {"taken_at": ["a"], "states": []},
        {"taken_at": [1], "states": [3]},
        {"taken_at": [1], "states": [{"weight": 3}]},
    ],
)
def test_the_state_of_something_else_is_refused_and_changes_nothing(foreign):
    ring = kn.SnapshotRing(1, 2)
    with pytest.raises(ArgumentError, match=r"^state: got"):
        ring.load_state_dict({"_extra_state": foreign})
    assert ring.get_extra_state() == {"taken_at": [], "states": []}


@pytest.mark.parametrize("template", ["{}", "{0}", "{", "}", "{x.y}", "{x!z}", "{x:d}"])
def test_templates_that_are_none_are_refused(template):
    with pytest.raises(ArgumentError, match=r"^template: got"):
        kn.Task(template, "answer").texts({"x": "1"})
    assert kn.Task("{{{x}}}", "answer").texts({"x": "1"}) == ("{1}", "answer")
