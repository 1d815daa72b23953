"""Things written as text: what they say, and what of them cannot be made."""

import inspect
from collections.abc import Sequence
from typing import Literal

import pytest

import halfbridge as hb
from halfbridge.solvers import names
from halfbridge.solvers.calls import Call, bind, call, find, plain, usage


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("dpm-3", "dpm-3", {}),
        (" unet (width=32, attention=(16, 8))", "unet", {"width": 32, "attention": [16, 8]}),
        ("x(a=-1e-3, b=inf, c=word, d='a, b')", "x", {"a": -1e-3, "b": float("inf"), "c": "word", "d": "a, b"}),
        ("x(e=None, f=True)", "x", {"e": None, "f": True}),
        ("x(a=law(mean=1), b=[law(), 2])", "x", {"a": {"type": "law", "mean": 1}, "b": [{"type": "law"}, 2]}),
        ("a/folder(size=32)", "a/folder", {"size": 32}),
    ],
)
def test_text_is_a_name_and_its_arguments(text, name, arguments):
    found = call(text, "net")
    assert (found.name, {key: plain(value) for key, value in found.arguments.items()}) == (name, arguments)
    assert found.values == ()


def test_arguments_without_a_name_come_before_the_others():
    assert call("x(1, word, a=law(2))", "net") == Call("x", {"a": Call("law", {}, (2,))}, (1, "word"))
    with pytest.raises(ValueError, match="an argument has no name; write law"):
        plain(Call("law", {}, (2,)))


@pytest.mark.parametrize("text", ["x(a=)", "x(**{1: 2})", "x(a=f(**{1: 2}))", "x(a=1+y)", "", "x(\0)"])
def test_text_that_is_no_call_is_refused(text):
    with pytest.raises(ValueError, match=r"cannot be read|is not a literal|empty name"):
        call(text, "net")


@pytest.mark.parametrize(("name", "meant"), [("Heun", "heun"), ("DPM++", "dpm_pp"), ("dpm-pp", "dpm_pp")])
def test_names_are_one_without_case_and_dashes(name, meant):
    assert find(name, ("heun", "dpm_pp"), "solver") == meant


def maker(first: float = 1.0, *, count: int | None = None, sizes: Sequence[int] = (), kind: Literal["a", "b"] = "a",
          word: str = "x", flag: bool = False, process: str = "") -> None:  # fmt: skip
    pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m(frist=2)", "thing 'm' has no argument 'frist'; did you mean 'first'?"),
        ("m(process=2)", "has no argument 'process'"),
        ("m(1, 2)", r"an argument without a name, 2; it takes m\(first=1.0, count=None"),
        ("m(1, first=2)", "is given first twice"),
        ("m(first=a)", "thing 'm': first = a must be a number"),
        ("m(first=True)", "first = True must be a number"),
        ("m(first=law(mean=1))", r"first = law\(mean=1\) must be a number"),
        ("m(count=1e9)", "count = 1000000000.0 must be a whole number or None"),
        ("m(count='3')", "count = '3' must be a whole number or None"),
        ("m(sizes=8)", "sizes = 8 must be a list"),
        ("m(sizes=[8, a])", r"sizes = \[8, a\] must be a list"),
        ("m(kind=c)", "kind = c must be 'a' or 'b'"),
        ("m(word=3)", "word = 3 must be a word"),
        ("m(flag=1)", "flag = 1 must be True or False"),
    ],
)
def test_an_argument_of_another_kind_is_named_with_its_value(text, message):
    with pytest.raises(ValueError, match=message):
        bind(maker, call(text, "thing"), "thing", ("process",))


def test_arguments_are_taken_as_python_takes_them():
    given = call("m(2, count=None, sizes=(1, 2), kind=b)", "thing")
    assert bind(maker, given, "thing") == {"first": 2, "count": None, "sizes": [1, 2], "kind": "b"}
    assert usage("m", maker, ("process", "kind", "word", "flag")) == "m(first=1.0, count=None, sizes=[])"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("VP(beta_mx=1)", "process 'VP' has no argument 'beta_mx'; did you mean 'beta_max'?"),
        ("VP(beta_max=a)", "beta_max = a must be a number"),
        ("DiscreteVP", r"lacks betas, which has no default; write DiscreteVP\(betas=...\)"),
    ],
)
def test_a_process_that_cannot_be_made_says_why(text, message):
    with pytest.raises(ValueError, match=message):
        names.process(text)


def test_words_are_words_or_solvers_as_the_argument_is():
    assert names.solver("Ancestral(variance=transition)") == hb.Ancestral("transition")
    pc = names.solver("PredictorCorrector(Ancestral(transition), Langevin)")
    assert pc == hb.PredictorCorrector(hb.Ancestral("transition"), hb.Langevin())
    with pytest.raises(ValueError, match=r"there is no solver 'ancestrl'; did you mean 'Ancestral'\?"):
        names.solver("PredictorCorrector(ancestrl, Langevin)")


def test_every_named_maker_has_a_usage_that_makes_the_same():
    for makers, make in ((names.SOLVERS, names.solver), (names.PROCESSES, names.process)):
        for name, one in makers.items():
            if all(p.default is not p.empty for p in inspect.signature(one).parameters.values()):
                assert make(usage(name, one)) == make(name)
