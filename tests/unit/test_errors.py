import pickle

import pytest

from distillrs import errors


def test_every_error_survives_pickling_with_its_details():
    locked = errors.StoreLocked("busy", host="node-3", process="17")
    copy = pickle.loads(pickle.dumps(locked))
    assert type(copy) is errors.StoreLocked
    assert (str(copy), copy.host, copy.process) == ("busy", "node-3", "17")


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ArgumentError, ValueError),
        (errors.KeyNotFound, KeyError),
        (errors.StoreMissing, FileNotFoundError),
        (errors.StoreLocked, OSError),
        (errors.StoreCorrupt, OSError),
    ],
)
def test_errors_are_also_what_python_would_raise(error, builtin):
    assert issubclass(error, errors.DistillrsError)
    assert issubclass(error, builtin)
    assert str(error("what happened")) == "what happened"


def test_unknown_names_suggest_the_nearest_one():
    error = errors.unknown_name_error("method", "tesal", ["tesla", "datm"])
    assert "did you mean 'tesla'?" in str(error)
