"""What is said of a name that nothing has."""

from halfbridge.solvers.nearest import nearest


def test_a_near_name_is_asked_after_and_else_all_are_told():
    known = ("heun", "ddim")
    assert nearest("huen", known) == "did you mean 'heun'?"
    assert nearest("x", known) == nearest(3, known) == "there are 'heun', 'ddim'"
