"""Config files of the commands that take one: equal to flags, for every option."""

import argparse
import dataclasses
import math
import re
import shlex

import pytest
import yaml
from command import refused, run
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbridge import config_file
from halfbridge.cli import parser
from halfbridge.commands import training_run
from halfbridge.commands.train_bridge import WITHOUT
from halfbridge.training.settings import OPTIMIZERS, PRECISIONS, SCHEDULES, Settings

COMMANDS = {
    "train sgm": ["train", "sgm"], "train bridge": ["train", "bridge"], "sample": ["sample", "runs/x"],
    "translate": ["translate", "runs/x"], "likelihood": ["likelihood", "runs/x"],
}  # fmt: skip
PARSER = parser()
"""Made once: it keeps nothing between parses."""

TRAIN = {
    "data": "some 'quoted' \"folder\"\\ü", "size": (28, 20), "gray": False, "holdout": 0.1, "dequantise": True, "classes": True,
    "process": "VP(beta_max=15)", "net": "mlp(hidden=8)", "precondition": "edm(sigma_data=0.3)", "predicts": "score",
    "objective": 'denoising(weighting="min_snr")', "dtype": "float64", "out": "runs/a b", "resume": "auto", "device": "cpu",
    "threads": 2, "progress": True, "quiet": True,
}  # fmt: skip
BRIDGE = {
    "start": "digits(classes=[3])", "end": "normal(mean=0.5)", "process": "ou(theta=2)", "steps_of_chain": 7,
    "gammas": "symmetric(least=1, most=3)", "times": (0.0, 0.25, 1.0), "transitions": "euler", "method": "dsbm",
    "iterations": 3, "coupling": "ot", "coupling_size": 16, "target": "drift", "variance": "matched", "form": "full",
    "weighting": "plain", "first": "runs/sgm", "net": "unet(width=8)", "dtype": "float64", "stop_kl": 0.05, "stop_error": 0.3,
    "stop_patience": 2, "chunk": 33,
    "cache_paths": 64, "refresh": 5, "cache": "disk", "cache_limit": 10**9, "cache_folder": "a b", "covariance_paths": 99,
    "monitor_paths": 77, "out": "runs/a b", "resume": "auto", "device": "cpu", "threads": 2, "progress": True, "quiet": True,
    "plots": False,
}  # fmt: skip
TRANSLATE = {
    "input": "photos/(size=8)", "to": "end", "out": "x.npz", "number": 3, "seed": 7, "solver": "heun", "steps": 9,
    "grid": "karras(rho=5)", "t_end": 0.01, "times": (0.5, 0.25), "last_noise": False, "batch": 4, "range": (-2.0, 0.5),
    "device": "cpu", "threads": 1, "progress": False, "quiet": True,
}  # fmt: skip
SAMPLE = {
    "to": "end", "times": (0.5,), "last_noise": True,
    "average": 0.99, "out": "grid.png", "number": 3, "first": 5, "seed": 2**64 - 1, "solver": "DDIM(eta=0.5)", "steps": 7,
    "evaluations": 20, "grid": "karras(rho=5)", "t_end": 1e-5, "classes": "0-3,7", "guidance": -0.5, "batch": 16, "range": (-2.0, 0.5), "device": "cpu",
    "threads": 1, "progress": False, "quiet": True,
}  # fmt: skip
LIKELIHOOD = {
    "average": 0.0, "data": "moons(n=20)", "number": 3, "seed": 1, "method": "elbo", "solver": "heun", "rtol": 1e-07,
    "atol": 1e-30, "steps": 9, "divergence": "exact", "probes": 3, "draws": 16, "reconstruct": True, "classes": "none", "batch": 2,
    "device": "cpu", "threads": 1, "progress": True, "json": True,
}  # fmt: skip
OTHERS = {
    "train sgm": TRAIN,
    "train bridge": BRIDGE,
    "sample": SAMPLE,
    "translate": TRANSLATE,
    "likelihood": LIKELIHOOD,
}
FIELDS = [field.name for field in dataclasses.fields(Settings)]

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
below_one = st.floats(0, 1, exclude_max=True)
SETTINGS = st.builds(
    lambda rows, accumulate, steps, warmup, **rest: Settings(
        batch_size=rows * accumulate, accumulate=accumulate, steps=steps, warmup=min(warmup, steps), **rest
    ),
    rows=st.integers(1, 10**6),
    accumulate=st.integers(1, 64),
    steps=st.integers(1, 10**9),
    warmup=st.integers(0, 10**6),
    optimizer=st.sampled_from(OPTIMIZERS),
    lr=positive,
    betas=st.tuples(below_one, below_one),
    weight_decay=st.floats(0, allow_infinity=False),
    schedule=st.sampled_from(SCHEDULES),
    clip=positive | st.just(math.inf),
    precision=st.sampled_from(PRECISIONS),
    ema_decay=below_one | st.lists(below_one, min_size=1, max_size=3, unique=True).map(tuple),
    class_dropout=below_one,
    seed=st.integers(0, 2**64 - 1),
    save_every=st.integers(0, 10**6),
    keep=st.integers(1, 9),
    log_every=st.integers(1, 10**6),
    tensorboard=st.booleans(),
    sample_every=st.integers(0, 10**6),
    sample_count=st.integers(1, 999),
    sample_solver=st.sampled_from(["heun", "DDIM(eta=0.5)", 'Ancestral(variance="transition")']),
    sample_grid=st.sampled_from(["uniform", "karras(rho=5)"]),
    sample_steps=st.integers(1, 99),
)


def parsed(*arguments):
    """What the command was told, without what it says of files."""
    found = vars(PARSER.parse_args([str(argument) for argument in arguments]))
    return {k: v for k, v in found.items() if k not in ("config", "save_config", "parser", "run")}


def flags(values):
    """The words of a command line, as a user would write them."""
    words = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-"))
        elif isinstance(value, tuple):
            words.append(f"{flag}={','.join(map(repr, value))}" + "," * (len(value) == 1))
        else:
            words.append(f"{flag}={value}" if isinstance(value, str) else f"{flag}={value!r}")
    return words


def written(values, suffix):
    """A config file of them, as a user would write it."""
    if suffix == ".toml":
        return config_file.text(values)
    return yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}, allow_unicode=True)


def settable(command):
    return config_file.settable(PARSER.parse_args(COMMANDS[command]).parser)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("config")


@settings(max_examples=60, deadline=None)
@given(chosen=SETTINGS, suffix=st.sampled_from([".toml", ".yaml"]))
def test_any_settings_are_the_same_by_flags_and_by_a_file(folder, chosen, suffix):
    values = {name: getattr(chosen, name) for name in FIELDS}
    told = parsed("train", "sgm", *flags(values))
    assert training_run.settings(argparse.Namespace(**told)) == chosen
    file = folder / f"settings{suffix}"
    file.write_text(written(values, suffix), encoding="utf-8")
    assert parsed("train", "sgm", "--config", file) == told


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".yml"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_other_option_is_the_same_by_flag_and_by_a_file(tmp_path, command, suffix):
    others = OTHERS[command]
    of_settings = set(FIELDS) if command.startswith("train") else set()
    assert set(others) == settable(command).keys() - of_settings
    assert settable(command).keys() & of_settings == of_settings - set(WITHOUT if command == "train bridge" else ())
    default = parsed(*COMMANDS[command])
    file = tmp_path / f"options{suffix}"
    for name, value in others.items():
        told = parsed(*COMMANDS[command], *flags({name: value}))
        assert told == {**default, name: value} != default
        for spelt in (name, name.replace("_", "-")):
            file.write_text(written({spelt: value}, suffix), encoding="utf-8")
            assert parsed(*COMMANDS[command], "--config", file) == told
    file.write_text(written(others, suffix), encoding="utf-8")
    assert parsed(*COMMANDS[command], "--config", file) == parsed(*COMMANDS[command], *flags(others))


@pytest.mark.parametrize(("command", "more"), [
    ("train sgm", ["--data=moons", "--lr=3e-05", "--betas=0.5,0.9", "--clip=inf", "--size=28,20", "--classes", "--ema-decay=0.9,"]),
    ("train bridge", ["--start=moons", "--process=vp", "--gammas=constant", "--no-plots", "--stop-kl=1e-3", "--stop-error=0.5", "--lr=3e-05"]),
    ("translate", ["--to=start", "--times=1.0,", "--solver=heun", "--steps=3"]),
    ("sample", ["--t-end=1e-05", "--classes=0-3", "--seed=18446744073709551615", "--solver=Ancestral(variance=\"transition\")"]),
    ("likelihood", ["--no-reconstruct", "--json", "--rtol=1e-07"]),
])  # fmt: skip
def test_a_saved_config_asks_for_the_same_run(capsys, tmp_path, command, more):
    told = parsed(*COMMANDS[command], *more)
    assert run(capsys, *COMMANDS[command], *more, "--save-config", tmp_path / "a.toml")[0] == 0
    assert parsed(*COMMANDS[command], "--config", tmp_path / "a.toml") == told
    again = ["--config", tmp_path / "a.toml", "--save-config", tmp_path / "b.toml"]
    assert run(capsys, *COMMANDS[command], *again)[0] == 0
    assert (tmp_path / "a.toml").read_text() == (tmp_path / "b.toml").read_text()


def test_flags_prevail_over_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('steps = 5\ntensorboard = true\nclasses = true\nresume = "auto"\nlr = 0.5\n')
    told = parsed(
        "train", "sgm", "--steps", "7", "--config", file, "--no-tensorboard", "--no-classes", "--resume", "no"
    )
    assert (told["steps"], told["tensorboard"], told["classes"], told["resume"], told["lr"]) == (
        7,
        False,
        False,
        "no",
        0.5,
    )


def test_values_that_mean_one_flag_are_one_value(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 1e-3\nresume: yes\ntensorboard: no\nsize: null\nclip: .inf\nema_decay: [0.9]\ndata: moons\n")
    told = parsed("train", "sgm", "--config", file)  # PyYAML reads 1e-3 as a string
    assert (told["lr"], told["resume"], told["tensorboard"], told["size"]) == (1e-3, "yes", False, None)
    assert (told["clip"], told["ema_decay"]) == (math.inf, (0.9,))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "steps: 1:30", "a.yaml: steps = '1:30': '1:30' is not a whole number"),
        ("a.yaml", "betas: &b [*b]", "a list holds itself"),
        ("a.toml", b"data = '\xff'", "a.toml is not text in UTF-8"),
        ("a.toml", "loss = 'edm'\nobjective = 'ddpm'", "'objective' is there twice"),
        ("a.toml", "stpes = 3", "a.toml: there is no setting 'stpes'; did you mean 'steps'?"),
        ("a.yaml", "save-evry: 3", "did you mean 'save_every'?"),
        ("a.toml", "config = 'b.toml'", "there is no setting 'config'"),
        ("a.toml", "steps = 3.0", "a.toml: steps = 3.0: '3.0' is not a whole number"),
        ("a.toml", "steps = true", "steps = true: true is no number, string or list of them"),
        ("a.toml", "lr = 'fast'", "lr = 'fast': 'fast' is not a number"),
        ("a.toml", "tensorboard = 1", "tensorboard = 1: it must be true or false"),
        ("a.toml", "dtype = 'float16'", "did you mean 'float64'?"),
        ("a.toml", "[net]\nwidth = 3", "net = {'width': 3}"),
        ("a.toml", "save_every = 3\nsave-every = 4", "'save_every' is there twice"),
        ("a.toml", "steps = 3\nsteps = 4", "a.toml is not TOML"),
        ("a.yaml", "steps: 3\nsteps: 4", "'steps' is there twice"),
        ("a.yaml", "steps: [3", "a.yaml is not YAML"),
        ("a.yaml", "steps", "a.yaml holds a str"),
        ("a.json", "{}", "must end in .toml, .yaml or .yml"),
        ("a.toml", None, "there is no file"),
    ],
)
def test_a_bad_config_is_named_with_its_line(capsys, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused(capsys, "train", "sgm", "--config", tmp_path / name)


def test_a_config_that_would_not_run_is_not_written(capsys, tmp_path):
    message = refused(capsys, "train", "sgm", "--optimizer", "adma", "--save-config", tmp_path / "run.toml")
    assert "did you mean 'adam'?" in message
    assert "must end in .toml" in refused(capsys, "train", "sgm", "--save-config", tmp_path / "run.json")
    for words in (["--net", "foo"], ["--net", "mlp", "--precondition", "foo"]):
        assert "there is no" in refused(capsys, "train", "sgm", *words, "--save-config", tmp_path / "run.toml")
    assert not list(tmp_path.iterdir())


def test_of_several_files_the_later_prevail_and_each_must_be_there(capsys, tmp_path):
    (tmp_path / "a.toml").write_text("steps = 1\nlr = 0.5")
    (tmp_path / "b.yaml").write_text("steps: 010\nloss: edm")
    told = parsed("train", "sgm", "--config", tmp_path / "a.toml", "--config", tmp_path / "b.yaml")
    assert (told["steps"], told["lr"], told["objective"]) == (10, 0.5, "edm")
    missing = ["--config", tmp_path / "none.toml", "--config", tmp_path / "a.toml"]
    assert "there is no file" in refused(capsys, "train", "sgm", *missing)


@pytest.mark.parametrize(
    ("given", "kept"), [("--evaluations=9", (None, 9)), ("--steps=3", (3, None)), ("-n=2", (10, None))]
)
def test_a_flag_prevails_over_what_it_excludes_in_the_file(tmp_path, given, kept):
    (tmp_path / "a.toml").write_text("steps = 10")
    told = parsed("sample", "runs/x", "--config", tmp_path / "a.toml", given)
    assert (told["steps"], told["evaluations"]) == kept


def test_home_and_negative_numbers_are_read_as_they_are_meant(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.toml").write_text("out = '~/runs'")
    for words in (["--out", "~/runs"], ["--config", "~/a.toml"]):
        assert parsed("train", "sgm", *words)["out"] == str(tmp_path / "runs")
    told = parsed("sample", "~/runs/x", "--range", "-1,1", "--guidance", "-.5", "--out", "~/x.png")
    assert (told["folder"], told["range"], told["guidance"]) == (str(tmp_path / "runs/x"), (-1.0, 1.0), -0.5)
    assert told["out"] == str(tmp_path / "x.png")
    for words in (["--data", "moons", "--out", ""], ["--data", "", "--out", tmp_path / "run"]):
        assert "empty" in refused(capsys, "train", "sgm", *words)


@pytest.mark.parametrize(("command", "named"), [
    ("train sgm", ["unet(width=64", "mlp(hidden=256", "vdm(", "learned(gamma_0", "discretised(levels=256", "VP(beta_min=0.1", "n_per_class=None",
                   "edm(sigma_data=0.5)", "min_snr(gamma=5.0)", "log_normal(mean="]),
    ("train bridge", ["normal(mean=0.0, std=1.0)", "symmetric(least, most", "dsb(rate=0.0)", "OU(theta=0.5", "classes=None", "mlp(hidden=256"]),
    ("translate", ["DDIM(eta=0.0)"]), ("sample", ["DDIM(eta=0.0)", "karras(rho=7.0)", "Heun(churn=0.0"]), ("likelihood", ["DDIM(eta=0.0)"]),
])  # fmt: skip
def test_help_names_the_arguments_of_what_it_names(capsys, command, named):
    out = " ".join(run(capsys, *command.split(), "--help")[1].split())
    for words in named:
        assert words in out
    assert "out=)" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_default_and_its_examples_are_commands(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, *command.split(), "--help")
    assert status == 0
    entries = {" ".join(part.split()) for part in re.split(r"\n(?=  -|\n)", out)}
    for action in settable(command).values():
        (entry,) = [e for e in entries if re.match(rf"{action.option_strings[0]}[ ,]", e)]
        assert "(default: " in entry or "(required" in entry
    examples = out[out.index("examples:") :].replace("\\\n", " ").splitlines()[1:]
    lines = [shlex.split(line) for line in examples if line.startswith(("  halfbridge ", "  accelerate launch "))]
    assert len(lines) >= 3
    for words in (line[line.index("halfbridge") + 1 :] for line in lines):
        assert PARSER.parse_args(words).run
        if "--save-config" in words:
            assert run(capsys, *words)[0] == 0


def test_every_setting_has_a_flag_with_the_words_of_its_field(capsys):
    out = "".join(run(capsys, "train", "sgm", "--help")[1].split())
    for field in dataclasses.fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in out
        assert field.metadata["help"].replace(" ", "") in out
