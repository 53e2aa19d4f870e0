"""How a column's records are encoded on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from distillrs.checks import check_whole
from distillrs.errors import argument_error, unknown_name_error


@dataclass(frozen=True, slots=True)
class Raw:
    """The bytes as they are. Windows come straight from the mapped file."""

    name: ClassVar[str] = "raw"


@dataclass(frozen=True, slots=True)
class HalfDelta:
    """Float16 differences to the trajectory's first record, with one scale for each tensor of the layout.

    Half the bytes, and any record decodes from two payloads; the rounding grows with the distance from the start.
    """

    name: ClassVar[str] = "half-delta"


@dataclass(frozen=True, slots=True)
class DeltaInt8:
    """Int8 differences to the reconstructed predecessor, in blocks of 256 with a scale for each half.

    The loop is closed: each difference is taken to what a reader will see, so errors do not add up, and they scale
    with the motion itself (0.7% of one epoch's displacement), also late in training. Nearly a quarter of the bytes.

    Attributes:
        keyframe_every: A full record stands at every so many steps; a window decodes from the nearest one before it.
    """

    name: ClassVar[str] = "delta-int8"
    keyframe_every: int = 17

    def __post_init__(self) -> None:
        _check_keyframes(self.keyframe_every)


@dataclass(frozen=True, slots=True)
class Lossless:
    """Exclusive-or with the predecessor, bytes grouped by significance, then compressed. Exact.

    Attributes:
        keyframe_every: A record that needs no predecessor stands at every so many steps.
    """

    name: ClassVar[str] = "lossless"
    keyframe_every: int = 17

    def __post_init__(self) -> None:
        _check_keyframes(self.keyframe_every)


def _check_keyframes(keyframe_every: int) -> None:
    check_whole("keyframe_every", keyframe_every, "a number of records from 1 to 65536", least=1, most=65536)


Codec = Raw | HalfDelta | DeltaInt8 | Lossless

_CODECS: dict[str, type[Codec]] = {kind.name: kind for kind in (Raw, HalfDelta, DeltaInt8, Lossless)}


def codec_of(codec: str | Codec) -> Codec:
    """The codec of that name with its defaults, or the codec itself.

    Raises:
        UnknownNameError: No codec has this name.
        ArgumentError: ``codec`` is neither a name nor a codec.
    """
    if isinstance(codec, str):
        if codec not in _CODECS:
            raise unknown_name_error("codec", codec, list(_CODECS))
        return _CODECS[codec]()
    if not isinstance(codec, tuple(_CODECS.values())):
        raise argument_error("codec", codec, f"a codec or one of {', '.join(_CODECS)}")
    return codec


def codec_to_dict(codec: Codec) -> dict[str, Any]:
    """A form that JSON can hold: the name and the parameters."""
    return {"name": codec.name, **asdict(codec)}


def codec_from_dict(form: Mapping[str, Any] | str) -> Codec:
    """The codec that :func:`codec_to_dict` described.

    Raises:
        ArgumentError: The form names no codec or a parameter that it does not have.
    """
    if isinstance(form, str):
        return codec_of(form)
    parameters = dict(form)
    name = parameters.pop("name", None)
    if not isinstance(name, str) or name not in _CODECS:
        raise unknown_name_error("codec", str(name), list(_CODECS))
    try:
        return _CODECS[name](**parameters)
    except TypeError as failure:
        raise argument_error("codec", dict(form), f"the parameters of {name!r}") from failure
