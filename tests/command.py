"""The `halfbridge` command run in this process."""

from halfbridge.cli import main


def run(capsys, *arguments):
    """(exit status, stdout, stderr)."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def train(folder, *arguments):
    """The folder, with a run in it."""
    assert main(["train", "sgm", *arguments, "--quiet", "--out", str(folder)]) == 0
    return str(folder)


def bridge(folder, *arguments):
    """The folder, with a bridge's run in it."""
    assert main(["train", "bridge", *arguments, "--quiet", "--out", str(folder)]) == 0
    return str(folder)


def refused(capsys, *arguments):
    """The message of an error, which must be one line on stderr with exit status 2 and nothing on stdout."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("halfbridge: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err.removeprefix("halfbridge: error: ")
